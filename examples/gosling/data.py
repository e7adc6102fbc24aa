"""The training text of gosling: from the books to the two token files that gosling.toml names, in four commands.

    python examples/gosling/data.py ../shared/data/stories ../shared/data/instruct -o gosling
    python examples/gosling/vocabulary.py gosling/train.jsonl -o examples/gosling/vocabulary.txt
    rookery data gosling/train.jsonl -o gosling/train --tokenizer examples/gosling/vocabulary.txt
    rookery data gosling/valid.jsonl -o gosling/valid --tokenizer examples/gosling/vocabulary.txt

STORIES is a folder of .txt.gz books, ASCII, one paragraph a line, a blank line between paragraphs, a title line before
a chapter or tale; INSTRUCT holds gsm8k_train.jsonl.gz (MIT) and self_instruct_seed_tasks.jsonl (Apache-2.0). Heidi,
Pinocchio and the Old French tales are left out: their translators are not known.

One document is a chapter or tale under its title, so that shuffled documents mix the books. Two typical books are held
out, one of tales and one novel, and nothing is made of them but valid.jsonl: The Orange Fairy Book (Lang) and The
Railway Children (Nesbit). A share of the bytes is chat, `User: ...` and `Assistant: ...` turns, see chat.py.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import chat

LEFT_OUT = ("spyri_heidi", "collodi_pinocchio_the_tale_of_a_puppet", "segur_old_french_fairy_tales")
HELD_OUT = ("lang_orange_fairy_book", "nesbit_railway_children")
LEAST = 1_500  # bytes of a document: shorter chapters, fables say, join the next


def books(folder: Path, held_out: bool) -> Iterator[list[str]]:
    """The paragraphs of each book, of those held out or of all others, by file name."""
    files = {path.name.removesuffix(".txt.gz"): path for path in sorted(folder.glob("*.txt.gz"))}
    missing = [name for name in HELD_OUT if name not in files]
    if missing:
        raise SystemExit(f"{folder}: no {missing[0]}.txt.gz; wanted the folder of stories")
    for name, path in files.items():
        if name not in LEFT_OUT and (name in HELD_OUT) == held_out:
            text = gzip.decompress(path.read_bytes()).decode("ascii")
            yield [paragraph.strip("\n") for paragraph in text.split("\n\n") if paragraph.strip()]


def is_title(paragraph: str, following: str) -> bool:
    """Whether a paragraph names the chapter or tale that begins with the next."""
    one_line = "\n" not in paragraph and len(paragraph) < 70 and "\n" not in following and len(following) > 80
    return one_line and paragraph[0].isupper() and (paragraph[-1].isalnum() or paragraph[-1] in "')")


def chapters(paragraphs: list[str]) -> Iterator[list[str]]:
    """The paragraphs of each chapter or tale, its title first where it has one."""
    chapter: list[str] = []
    for paragraph, following in zip(paragraphs, [*paragraphs[1:], ""], strict=True):
        if chapter and is_title(paragraph, following):
            yield chapter
            chapter = []
        chapter.append(paragraph)
    yield chapter


def documents(paragraphs: list[str]) -> Iterator[str]:
    """Texts of at least LEAST bytes, but for a book's last."""
    text = ""
    for chapter in chapters(paragraphs):
        text += "\n\n".join(chapter) + "\n\n"
        if len(text) >= LEAST:
            yield text.rstrip("\n") + "\n"
            text = ""
    if text:
        yield text.rstrip("\n") + "\n"


def write(path: Path, texts: Iterable[str]) -> None:
    with path.open("w", encoding="ascii", newline="\n") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stories", type=Path)
    parser.add_argument("instruct", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--chat-share", type=float, default=0.08, help="of all bytes (default: 0.08)")
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()

    library = list(books(o.stories, held_out=False))
    stories = [text for paragraphs in library for text in documents(paragraphs)]
    size = sum(map(len, stories))
    tales = [chapter for paragraphs in library for chapter in chapters(paragraphs)]
    talk = chat.documents(tales, o.instruct, int(size * o.chat_share / (1 - o.chat_share)), random.Random(o.seed))
    train = [*stories, *talk]
    random.Random(o.seed).shuffle(train)

    o.out.mkdir(parents=True, exist_ok=True)
    write(o.out / "train.jsonl", train)
    held_out = [text for paragraphs in books(o.stories, held_out=True) for text in documents(paragraphs)]
    write(o.out / "valid.jsonl", held_out)
    print(
        f"train: {len(stories)} story documents ({size:,} bytes) and {len(talk)} of chat ({sum(map(len, talk)):,}); "
        f"valid: {len(held_out)} ({sum(map(len, held_out)):,})"
    )


if __name__ == "__main__":
    main()
