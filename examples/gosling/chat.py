"""Chat for gosling: `User: ...` and `Assistant: ...` turns, each ended by a blank line, all ASCII.

Three sources, by the share of bytes that SHARES gives them. Worked sums: gsm8k (MIT) without its <<calculator>> marks.
Small tasks: self_instruct_seed_tasks (Apache-2.0) and the small talk below. Stories: tasks made mechanically from the
training books, each answerable from what the question shows or in any of many ways:

tell       "Tell me a story about a fox." -> the opening of a tale in which a fox is named; "Go on." -> what follows
continue   the opening of a paragraph -> what comes next
who        a paragraph with one `said NAME` in it -> who speaks
finish     the first half of a sentence -> the rest
sentence   a word -> a short sentence with it
repeat     a short sentence -> itself, in capitals, or its first or last word
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

SHARES = {"sums": 0.25, "tasks": 0.1, "stories": 0.65}
LONGEST = 1_600  # bytes of an answer

_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
THINGS = (
    "fox wolf bear lion mouse cat dog rabbit hare horse pony donkey goat pig cow frog toad crow owl raven eagle swan "
    "duck goose hen bird fish whale snake monkey elephant tiger camel ant bee spider king queen prince princess giant "
    "dwarf fairy witch wizard dragon mermaid goblin soldier sailor pirate hunter miller tailor shoemaker farmer "
    "shepherd fisherman merchant thief beggar boy girl child baby mother father brother sister grandmother "
    "grandfather teacher doctor ship boat castle palace forest garden river island mountain sea cave tree rose apple "
    "ring crown sword lamp doll toy snow moon star wind storm fire dream wish secret treasure birthday picnic school "
    "train kite cake"
)
TELL = (
    "Tell me a story about {a}.",
    "Tell me a tale of {a}.",
    "Can you tell me a story about {a}?",
    "I would like to hear a story about {a}.",
    "Please tell me a story with {a} in it.",
    "Write a short story about {a}.",
    "Do you know a story about {a}?",
    "Once more, a story about {a}, please!",
)
ANY = ("Tell me a story.", "Please tell me a story.", "Can you tell me a fairy tale?", "I want to hear a story.")
GO_ON = ("Go on.", "What happened next?", "And then?", "Please go on.", "Tell me more.", "Then what happened?")
TITLE = ("What is the story called?", "What is its name?", "What would you call that story?")
NEXT = ("What comes next: {x}", "Continue the story: {x}", "Go on with this story: {x}", "What happens next? {x}")
WHO = ('{x}\nWho said "{q}"?', 'Read this: {x}\nWho said "{q}"?', 'Who says "{q}" here?\n{x}')
WHO_ANSWER = ("{N} said it.", "It was {n}.", "{N}.")
FINISH = ("Finish the sentence: {x}", "How does this sentence end? {x}", "Complete this sentence: {x}")
SENTENCE = (
    'Use the word "{w}" in a sentence.',
    'Write a sentence with the word "{w}".',
    'Give me a sentence with "{w}".',
)
REPEAT: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("Repeat after me: {x}", lambda x: x),
    ("Say this in capital letters: {x}", str.upper),
    ('What is the first word of "{x}"?', lambda x: f'The first word is "{_WORD.findall(x)[0]}".'),
    ('What is the last word of "{x}"?', lambda x: f'The last word is "{_WORD.findall(x)[-1]}".'),
)
SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Hello.", "Hello!", "Hi", "Hi there!", "Hello", "Good morning!", "Good evening.", "Hey", "Hi! How are you?"),
        (
            "Hello! Shall I tell you a story?",
            "Good day to you! What shall we talk about?",
            "Hello! I am glad to see you. Would you like to hear a story?",
            "Hello, my friend! How are you today?",
        ),
    ),
    (
        ("How are you?", "How are you today?", "How do you do?", "Are you well?"),
        (
            "I am very well, thank you. And how are you?",
            "Very well, thank you! I have been thinking of a new story.",
            "I am quite happy today, thank you.",
        ),
    ),
    (
        ("Who are you?", "What is your name?", "What are you?", "Are you a person?", "Tell me about yourself."),
        (
            "I am Gosling, a very small language model. I like to tell stories.",
            "My name is Gosling. I am a little program that learned from old children's books.",
            "I am Gosling. I am not a person, only a small model that tells tales.",
        ),
    ),
    (
        ("What can you do?", "What do you know?", "Can you help me?", "What are you good at?", "Help"),
        (
            "I can tell you a story, or go on with one that you begin.",
            "I know the old tales of kings and foxes and fairies. Ask me for a story about one of them.",
            "I am small, so I know little; but I can tell you a story.",
        ),
    ),
    (
        ("Thank you.", "Thank you!", "Thanks!", "That was a nice story.", "I liked that story.", "Well done!"),
        ("You are very welcome!", "I am glad that you liked it.", "You are welcome. Shall I tell you another?"),
    ),
    (
        ("Goodbye.", "Bye!", "Good night.", "Good night!", "I must go now.", "See you tomorrow."),
        ("Good-bye! Come again soon.", "Good night, and sweet dreams!", "Farewell, my friend!"),
    ),
    (
        ("I am sad.", "I am sad today.", "I feel lonely.", "I had a bad day."),
        (
            "I am sorry to hear that. Shall I tell you a merry story?",
            "Do not be sad! Tell me what has happened.",
            "Poor dear! Sit down here, and I will tell you a tale.",
        ),
    ),
    (
        ("Do you like stories?", "Do you like animals?", "Do you like fairy tales?", "Do you like to read?"),
        ("Yes, I do, very much.", "Yes, indeed!", "Yes; there is nothing that I like better."),
    ),
    (
        ("Why is the sky blue?", "What is the capital of France?", "Who is the president?", "What time is it?"),
        (
            "I do not know. I am very small, and I know only stories.",
            "That I cannot tell you; but I can tell you a story.",
        ),
    ),
)

_SENTENCE = re.compile(r"""[^.!?]+[.!?]['"]*(?=\s|$)""")
_SAID = re.compile(
    r'"([^"]{8,120})[,!?]" (?:said|cried|asked|answered|replied|shouted|whispered) '
    r"((?:the (?:[a-z]+ )?[A-Za-z]+|(?:(?:Old|Little|Mr\.|Mrs\.|Miss) )?[A-Z][a-z]+(?: [A-Z][a-z]+)?))(?=[.,;])"
)
_NOT_ASCII = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "--", 0x2026: "...", 0xA0: " "}


def documents(tales: list[list[str]], instruct: Path, size: int, dice: random.Random) -> list[str]:
    """About `size` bytes of conversations of one to four turns; `tales` are paragraphs, mostly after a title."""
    sources = {
        "sums": sums(instruct / "gsm8k_train.jsonl.gz", dice),
        "tasks": tasks(instruct / "self_instruct_seed_tasks.jsonl", dice),
        "stories": stories(tales, dice),
    }
    found: list[str] = []
    for name, share in SHARES.items():
        left = int(size * share)
        for text in sources[name]:
            if left <= 0:
                break
            if text.isascii():
                found.append(text)
                left -= len(text)
    return found


def conversation(turns: list[tuple[str, str]]) -> str:
    """A blank line ends a turn, so none is left within one."""
    return "".join(f"User: {_one_block(question)}\n\nAssistant: {_one_block(answer)}\n\n" for question, answer in turns)


def _one_block(text: str) -> str:
    return re.sub(r"\s*\n\s*", "\n", text.translate(_NOT_ASCII).strip())


def sums(path: Path, dice: random.Random) -> Iterator[str]:
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    dice.shuffle(rows)
    while rows:
        some = [rows.pop() for _ in range(min(len(rows), dice.choice((1, 1, 2, 3))))]
        yield conversation([(row["question"], _worked(row["answer"])) for row in some])


def _worked(answer: str) -> str:
    steps, _, result = re.sub(r"<<[^>]*>>", "", answer).partition("####")
    return f"{steps.strip()}\nThe answer is {result.strip()}."


def tasks(path: Path, dice: random.Random) -> Iterator[str]:
    """Seed tasks of moderate length once each, small talk between them and for ever after."""
    seeds = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        one = row["instances"][0]
        if len(one["output"]) < LONGEST:
            seeds.append((f"{row['instruction']}\n{one['input']}", one["output"]))
    dice.shuffle(seeds)
    while True:
        if seeds:
            yield conversation([seeds.pop()])
        topics = dice.sample(SMALL_TALK, dice.choice((1, 2, 3)))
        yield conversation([(dice.choice(questions), dice.choice(answers)) for questions, answers in topics])


def stories(tales: list[list[str]], dice: random.Random) -> Iterator[str]:
    """For ever, tasks of every kind in turn."""
    titled = [tale for tale in tales if len(tale) > 4 and len(tale[0]) < 70 and "\n" not in tale[0]]
    prose = [p for tale in tales for p in tale[1:] if 120 < len(p) < LONGEST and "\n" not in p]
    said = [p for p in prose if len(_SAID.findall(p)) == 1 and p.count('"') == 2 and len(p) < 700]
    sentences = [s.strip() for p in prose if '"' not in p for s in _SENTENCE.findall(p)]
    sentences = [s for s in sentences if 30 < len(s) < 160 and s[0].isupper() and s[-1] == "." and "'" not in s]
    for kind in cycle(("tell", "continue", "tell", "who", "tell", "finish", "small", "tell", "continue", "sentence")):
        if kind == "tell":
            yield conversation(_tell(dice.choice(titled), dice))
        else:
            turns = dice.choice((1, 1, 2, 3))
            make, source = {
                "continue": (_continue, prose),
                "who": (_who, said),
                "finish": (_finish, sentences),
                "small": (_repeat, sentences),
                "sentence": (_use, sentences),
            }[kind]
            yield conversation([make(dice.choice(source), dice) for _ in range(turns)])


def _tell(tale: list[str], dice: random.Random) -> list[tuple[str, str]]:
    title, *body = tale
    answers = []
    for _ in range(dice.choice((1, 1, 2, 3))):
        answer = ""
        while body and len(answer) + len(body[0]) < LONGEST:
            answer += body.pop(0) + "\n"
            if len(answer) > dice.choice((300, 600, 900)):
                break
        if answer:
            answers.append(answer)
    if not answers:  # a first paragraph of more than a page
        answers = [" ".join(_SENTENCE.findall(body[0])[:5])]
    named = set(_WORD.findall(f"{title} {answers[0]}".lower()))
    things = [thing for thing in THINGS.split() if thing in named]
    thing = dice.choice(things) if things else ""
    first = dice.choice(TELL).format(a=_article(thing, dice)) if thing else dice.choice(ANY)
    turns = [(first, answers[0]), *((dice.choice(GO_ON), answer) for answer in answers[1:])]
    if dice.random() < 0.2:
        turns.append((dice.choice(TITLE), f'It is called "{title}".'))
    return turns


def _article(thing: str, dice: random.Random) -> str:
    if dice.random() < 0.15:
        return f"the {thing}"
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _continue(paragraph: str, dice: random.Random) -> tuple[str, str]:
    found = [s.strip() for s in _SENTENCE.findall(paragraph)]
    half = max(1, len(found) // 2)
    if len(found) < 2:
        return _finish(paragraph, dice)
    return dice.choice(NEXT).format(x=" ".join(found[:half])), " ".join(found[half:])


def _who(paragraph: str, dice: random.Random) -> tuple[str, str]:
    ((quote, name),) = _SAID.findall(paragraph)
    answer = dice.choice(WHO_ANSWER).format(n=name, N=name[0].upper() + name[1:])
    return dice.choice(WHO).format(x=paragraph, q=quote), answer


def _finish(sentence: str, dice: random.Random) -> tuple[str, str]:
    words = sentence.split()
    at = dice.randrange(len(words) // 3, 2 * len(words) // 3 + 1) or 1
    return dice.choice(FINISH).format(x=" ".join(words[:at])), " ".join(words[at:])


def _use(sentence: str, dice: random.Random) -> tuple[str, str]:
    words = [word for word in _WORD.findall(sentence) if word.islower() and len(word) > 3] or _WORD.findall(sentence)
    return dice.choice(SENTENCE).format(w=dice.choice(words)), sentence


def _repeat(sentence: str, dice: random.Random) -> tuple[str, str]:
    question, answer = dice.choice(REPEAT)
    return question.format(x=sentence), answer(sentence)
