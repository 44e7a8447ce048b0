# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A hook of mkdocs: where a line must not break, however narrow the column.

- A number and its error, as in 4.15 ± 0.14.
- A flag of a command: browsers break `--max_length` behind its dashes. The style of `.flag` is in assets/site.css.
"""

import re
from typing import Any


_CODE = re.compile(r"(<pre\b.*?</pre>|<code\b.*?</code>)", re.DOTALL)
_COMMANDS = re.compile(r'(?<=<div class="language-bash).*?</div>', re.DOTALL)
_ERROR = re.compile(r"(?<=[\d%]) ± (?=\d)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def on_page_content(content: str, **_: Any) -> str:
    """Put no-break spaces around the sign of an error outside of code, and flags of commands into elements."""
    parts = _CODE.split(content)
    parts[::2] = [_ERROR.sub("\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}", text) for text in parts[::2]]
    return _COMMANDS.sub(lambda block: _FLAG.sub(r'<span class="flag">\g<0></span>', block[0]), "".join(parts))
