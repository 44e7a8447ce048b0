# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The playground: a page with answers side by side, whose tokens are coloured by their values.

The page talks to servers by OpenAI's API, also to the one that it starts itself for models that are loaded. What it
shows is made by functions that need no page, for notebooks and exports. Imports `serving` and the folders below it;
gradio is imported where a page is made.
"""
