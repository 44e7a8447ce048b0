# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Make the prompts of the IMDB task from the public dataset, and compare each with its stored hash.

    python -m benchmarks.quality.imdb_prompts [--dataset stanfordnlp/imdb] [--output data]

The reviews (Maas et al. 2011) are not in this repository. `benchmarks/prompts/imdb_prompts_{train,eval}.sha256` have
the SHA-256 of each prompt, a line a row, in the order of the rows. A prompt is the first 16 words of a review; which
reviews they come from, and in which order they stand, follows from the hashes. So a file that is written holds the
prompts of all results, byte for byte, or the command names the rows that the dataset does not have.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyarrow import ArrowInvalid, parquet

from benchmarks.harness.results import ROOT
from benchmarks.harness.text import DATA
from trl_ext.atomic_files import write_text


DATASET = "stanfordnlp/imdb"
HASHES = ROOT / "benchmarks" / "prompts"
FILES = ("imdb_prompts_train", "imdb_prompts_eval")
WORDS = 16
SHOWN = 10  # missing rows that are named

# Not all of `\s`, to which U+0085 belongs: in these reviews it is an ellipsis in the wrong encoding, part of a word.
_SPACE = r"[ \t\u00a0]"
_SPACES = re.compile(f"{_SPACE}+")
_BREAKS = re.compile(rf"{_SPACE}*(?:<br ?/?>{_SPACE}*)+", re.IGNORECASE)


def opening(review: str, words: int = WORDS) -> str:
    """
    The prompt that a review gives.

    Args:
        review (`str`): As the dataset has it, with `<br />` for line breaks.
        words (`int`, *optional*, defaults to `16`): Words are what single spaces separate, once line breaks are
            characters without spaces around them and runs of spaces are one.

    Returns:
        `str`: The first words; the whole review if it has no more.
    """
    text = _SPACES.sub(" ", _BREAKS.sub("\n", review)).strip(" \n")
    return " ".join(text.split(" ")[:words])


def digest(prompt: str) -> str:
    """The SHA-256 of a prompt in UTF-8, in hexadecimal."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def read_hashes(file: Path) -> list[str]:
    """
    The hashes of a file's rows, in order.

    Raises:
        `ValueError`: A line is no SHA-256; file and line are named.
    """
    lines = file.read_text(encoding="utf-8").split()
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"[0-9a-f]{64}", line):
            raise ValueError(f"{file}, line {number}: {line!r} is not a SHA-256 in hexadecimal.")
    return lines


def find(reviews: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """The prompts, by their hashes, that reviews give and somebody wants."""
    left, found = set(wanted), {}
    for review in reviews:
        prompt = opening(review)
        if (key := digest(prompt)) in left:
            found[key] = prompt
    return found


# -------------------------------------------------------------------------------------------------------- the dataset


def reviews_of(dataset: str) -> Iterator[str]:
    """
    The texts of all splits.

    Args:
        dataset (`str`): Name on the Hub; or a .parquet file, or a folder of such files (a copy of the dataset's
            repository) or of the original archive (`aclImdb`, a .txt file a review).

    Raises:
        `ValueError`: It is a path that has no reviews, or rows without a `text`.
    """
    place = Path(dataset)
    if place.is_file():
        yield from _of_file(place)
    elif place.is_dir():
        tables, texts = sorted(place.rglob("*.parquet")), sorted(place.rglob("[0-9]*_[0-9]*.txt"))
        if not tables and not texts:
            raise ValueError(
                f"{dataset} has no .parquet files and no reviews as .txt files: name a copy of {DATASET}."
            )
        for table in tables:
            yield from _of_file(table)
        yield from (text.read_text(encoding="utf-8") for text in texts)
    elif dataset.startswith((".", "/")):
        raise ValueError(f"{dataset} does not exist: name a copy of {DATASET}.")
    else:
        from datasets import load_dataset

        for name, split in load_dataset(dataset).items():
            _require_text(f"{dataset}, split {name}", split.column_names)
            yield from split["text"]


def _of_file(file: Path) -> list[str]:
    try:
        table = parquet.ParquetFile(file)
    except ArrowInvalid as error:
        raise ValueError(f"{file} is not a .parquet file ({error}): name a copy of {DATASET}.") from error
    _require_text(str(file), table.schema_arrow.names)
    return list(table.read(["text"])["text"].to_pylist())


def _require_text(place: str, columns: Sequence[str]) -> None:
    if "text" not in columns:
        raise ValueError(f"{place} has no column 'text', only {', '.join(columns)}: name a copy of {DATASET}.")


# ----------------------------------------------------------------------------------------------------------- the files


def write(name: str, hashes: Sequence[str], found: dict[str, str], folder: Path, allow_missing: bool) -> bool:
    """
    Write a file of prompts, or name the rows that were not found.

    Args:
        name (`str`): Of the file, without its suffix.
        hashes (`Sequence[str]`): Of its rows, in order.
        found (`dict[str, str]`): Prompts by hash.
        folder (`Path`): Where to.
        allow_missing (`bool`): Write the other rows.

    Returns:
        `bool`: Whether the file has all rows.
    """
    missing = [(line, key) for line, key in enumerate(hashes, 1) if key not in found]
    file = folder / f"{name}.jsonl"
    if missing:
        print(f"{file}: {len(missing):,} of {len(hashes):,} rows are not in the dataset:", file=sys.stderr)
        for line, key in missing[:SHOWN]:
            print(f"  line {line} of {name}.sha256: {key}", file=sys.stderr)
        if len(missing) > SHOWN:
            print(f"  and {len(missing) - SHOWN:,} more", file=sys.stderr)
        if not allow_missing:
            print("  nothing is written; --allow_missing writes the other rows", file=sys.stderr)
            return False
    rows = [json.dumps({"prompt": found[key]}) for key in hashes if key in found]
    write_text(file, "".join(f"{row}\n" for row in rows))
    print(f"wrote {file}: {len(rows):,} prompts, each with the stored hash")
    return not missing


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.imdb_prompts", description=__doc__.strip().split("\n\n")[0]
    )
    parser.add_argument(
        "--dataset",
        default=DATASET,
        help="name on the Hub, or a local copy: a .parquet file, a folder of them, or the original archive's folder",
    )
    parser.add_argument("--output", type=Path, default=DATA, help="folder of the files (default: data/)")
    parser.add_argument("--hashes", type=Path, default=HASHES, help="folder of the .sha256 files")
    parser.add_argument(
        "--allow_missing", action="store_true", help="write a file though some of its rows are missing"
    )
    options = parser.parse_args(argv)
    hashes = {name: read_hashes(options.hashes / f"{name}.sha256") for name in FILES}
    wanted = {key for keys in hashes.values() for key in keys}
    try:
        found = find(reviews_of(options.dataset), wanted)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # no network, no such dataset
        print(
            f"{options.dataset} could not be loaded: {error}\nWithout a network, copy the dataset from a machine that "
            "has one, and name its folder: --dataset FOLDER.",
            file=sys.stderr,
        )
        return 2
    complete = [write(name, keys, found, options.output, options.allow_missing) for name, keys in hashes.items()]
    return int(not all(complete))


if __name__ == "__main__":
    sys.exit(main())
