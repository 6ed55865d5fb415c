"""Tokens that were changed on their way, at random: one to three changes each, of every kind that a text can suffer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from granting import b64, unb64

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
APPENDED = (
    ".",
    "..",
    " ",
    "\n",
    "\r\n",
    "\t",
    "=",
    "==",
    "\x00",
    "A",
    "AA",
    ".e30",
    "é",
    "\u200b",
    "\ud800",
    "%00",
    ";",
)
PREPENDED = ("Bearer ", " ", ".", "\ufeff", "=", "\n", "e30.", "\ud800")
Change = Callable[[random.Random, str, str], str]


def spoil(rng: random.Random, text: str, other: str) -> str:
    """`text` with one to three changes, some of which take from `other`, another valid token."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        text = rng.choice(CHANGES)(rng, text, other)
    return text


def flip_bit(rng: random.Random, text: str, other: str) -> str:
    place = rng.randrange(len(text)) if text else 0
    return (
        text[:place]
        + "".join(chr(ord(each) ^ 1 << rng.randrange(7)) for each in text[place : place + 1])
        + (text[place + 1 :])
    )


def change_letter(rng: random.Random, text: str, other: str) -> str:
    place = rng.randint(0, len(text))
    return text[:place] + rng.choice(LETTERS) + text[place + 1 :]


def cut(rng: random.Random, text: str, other: str) -> str:
    start = rng.randint(0, len(text))
    return rng.choice((text[:start], text[start:], text[:start] + text[start + rng.randint(1, 40) :]))


def insert(rng: random.Random, text: str, other: str) -> str:
    place = rng.randint(0, len(text))
    inserted = rng.choice((rng.choice(LETTERS), rng.choice(APPENDED), chr(rng.randrange(0x110000)), text[place:][:30]))
    return text[:place] + inserted + text[place:]


def swap_letters(rng: random.Random, text: str, other: str) -> str:
    place = rng.randint(0, len(text))
    return text[:place] + text[place : place + 2][::-1] + text[place + 2 :]


def swap_parts(rng: random.Random, text: str, other: str) -> str:
    parts = text.split(".")
    return ".".join(rng.sample(parts, len(parts)))


def splice_parts(rng: random.Random, text: str, other: str) -> str:
    return ".".join(rng.choice(pair) for pair in zip(text.split("."), other.split("."), strict=False))


def splice(rng: random.Random, text: str, other: str) -> str:
    place = rng.randint(0, len(text))
    return text[:place] + other[place + rng.choice((0, 0, 0, 1, -1)) :]


def other_alphabet(rng: random.Random, text: str, other: str) -> str:
    if rng.random() < 0.5:
        return text.replace("-", "+").replace("_", "/")
    return ".".join(part + "=" * rng.choice((-len(part) % 4, 1, 2)) for part in text.split("."))


def spare_bits(rng: random.Random, text: str, other: str) -> str:
    """Other letters for the same bytes: the last letter of a part has bits that a decoder may drop."""
    parts = text.split(".")
    place = rng.randrange(len(parts))
    part = parts[place]
    if part and part[-1] in LETTERS:
        parts[place] = part[:-1] + LETTERS[LETTERS.index(part[-1]) ^ rng.choice((1, 2, 3))]
    return ".".join(parts)


def other_case(rng: random.Random, text: str, other: str) -> str:
    start = rng.randint(0, len(text))
    end = rng.choice((start + 1, len(text)))
    return text[:start] + text[start:end].swapcase() + text[end:]


def append(rng: random.Random, text: str, other: str) -> str:
    return text + rng.choice(APPENDED) * rng.choice((1, 1, 2, 5000))


def prepend(rng: random.Random, text: str, other: str) -> str:
    return rng.choice(PREPENDED) + text


def repeat(rng: random.Random, text: str, other: str) -> str:
    return rng.choice((text * 2, f"{text}.{text}", f"{text} {other}", f"{text},{other}"))


def change_byte(rng: random.Random, text: str, other: str) -> str:
    """In what a part holds, encoded again as an encoder writes it: nothing but the signature can tell."""
    parts = text.split(".")
    place = rng.randrange(len(parts))
    try:
        content = bytearray(unb64(parts[place]))
    except ValueError:
        return text
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return ".".join([*parts[:place], b64(bytes(content)), *parts[place + 1 :]])


def change_value(rng: random.Random, text: str, other: str) -> str:
    """In the header or the claims, well-formed: what somebody would change who wants more."""
    parts = text.split(".")
    place = rng.randrange(2)
    try:
        values = json.loads(unb64(parts[place]))
        name = rng.choice(sorted(values))
    except (ValueError, TypeError, IndexError):
        return text
    value = values[name]
    values[name] = value + rng.choice((1, 86_400, -60)) if isinstance(value, int) else rng.choice(("none", "once", []))
    return ".".join([*parts[:place], b64(json.dumps(values, separators=(",", ":")).encode()), *parts[place + 1 :]])


CHANGES: tuple[Change, ...] = (
    *(flip_bit, change_letter, cut, insert, swap_letters, swap_parts, splice_parts, splice, other_alphabet),
    *(spare_bits, other_case, append, prepend, repeat, change_byte, change_value),
)
