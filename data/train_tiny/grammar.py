"""The corpus of the embedded model: stories, lists, sums and conversations from a grammar, any
amount, by seed.

Facts recur at a distance (who, which colour, how many, where), so that a model must remember them
to predict well: the perplexity says something, and so does a wrong colour in a generated text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

Message = dict[str, str]

SHE = ["Mira", "Ana", "Lena", "Yuki", "Nora", "Rosa", "Ida", "Zoe", "Mei", "Ruth", "Fatma", "Olga"]
HE = ["Tom", "Wei", "Omar", "Ivan", "Sam", "Kofi", "Leo", "Ben", "Jun", "Karl", "Amir", "Hugo"]
PEOPLE = [(name, "she", "her") for name in SHE] + [(name, "he", "his") for name in HE]
COLOURS = [
    "red",
    "blue",
    "green",
    "yellow",
    "white",
    "black",
    "silver",
    "orange",
    "brown",
    "pink",
    "grey",
    "golden",
]
THINGS = [
    "kite",
    "boat",
    "lamp",
    "drum",
    "bell",
    "cart",
    "hat",
    "box",
    "flag",
    "clock",
    "ring",
    "cup",
    "book",
    "coat",
    "rope",
    "mask",
    "key",
    "ball",
    "chair",
    "spoon",
]
FOOD = [
    "apples",
    "pears",
    "plums",
    "nuts",
    "cakes",
    "shells",
    "stones",
    "coins",
    "eggs",
    "seeds",
    "beans",
    "cards",
]
PLACES = [
    "river",
    "market",
    "hill",
    "garden",
    "harbour",
    "forest",
    "bridge",
    "tower",
    "school",
    "mill",
    "lake",
    "farm",
    "beach",
    "station",
    "temple",
    "field",
]
ANIMALS = [
    "fox",
    "goat",
    "heron",
    "cat",
    "dog",
    "hare",
    "crow",
    "horse",
    "mouse",
    "duck",
    "bear",
    "goose",
]
WEATHER = ["warm", "cold", "windy", "quiet", "rainy", "bright", "dark", "cloudy"]
MOODS = ["glad", "tired", "proud", "calm", "curious", "brave", "sad", "sleepy"]
DAYS = ["morning", "evening", "afternoon", "night"]
WORK = [
    ("mends", "mended"),
    ("paints", "painted"),
    ("carries", "carried"),
    ("cleans", "cleaned"),
    ("finds", "found"),
    ("hides", "hid"),
]
HIGHEST = 12  # of the two numbers of a sum


def a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass
class World:
    """The facts of one document; every sentence about them is drawn from here."""

    rng: random.Random

    def __post_init__(self) -> None:
        pick = self.rng.choice
        (self.name, self.he, self.his), (self.friend, self.he2, self.his2) = self.rng.sample(
            PEOPLE, 2
        )
        self.colour, self.other = self.rng.sample(COLOURS, 2)
        self.thing, self.second = self.rng.sample(THINGS, 2)
        self.place, self.far = self.rng.sample(PLACES, 2)
        self.food, self.animal, self.weather = pick(FOOD), pick(ANIMALS), pick(WEATHER)
        self.mood, self.day, (self.works, self.worked) = pick(MOODS), pick(DAYS), pick(WORK)
        self.have, self.more = self.rng.randint(1, HIGHEST), self.rng.randint(1, HIGHEST)

    @property
    def mine(self) -> str:
        return f"{self.colour} {self.thing}"

    @property
    def theirs(self) -> str:
        return f"{self.other} {self.second}"


def opening(w: World) -> list[str]:
    he = w.he.capitalize()
    return [
        w.rng.choice(
            [
                f"Once upon a time {w.name} lived near the {w.place}.",
                f"One {w.weather} {w.day} {w.name} went to the {w.place}.",
                f"{w.name} lives in a house by the {w.place}.",
            ]
        ),
        w.rng.choice(
            [
                f"{he} had {a(w.mine)}.",
                f"There {w.he} kept {a(w.mine)}.",
                f"In {w.his} bag was {a(w.mine)}.",
            ]
        ),
    ]


def middle(w: World) -> list[str]:
    he = w.he.capitalize()
    meeting = [
        f"{w.friend} came with {a(w.theirs)} and sat down beside {w.name}.",
        f"At the {w.place} {w.he} met {w.friend}, who had {a(w.theirs)}.",
    ]
    lines = [
        f"{he} had {w.have} {w.food}. {w.friend} gave {w.name} {w.more} more, so now {w.he} had {w.have + w.more} "
        f"{w.food}.",
        w.rng.choice(
            [
                f'{a(w.animal).capitalize()} watched them from the {w.far} and did not move. "Look, '
                f'{a(w.animal)} at the {w.far}!" said {w.friend}.',
                f"Then {a(w.animal)} ran to the {w.far}, and they followed the {w.animal} to the {w.far}.",
            ]
        ),
        f"Every {w.day} {w.name} {w.works} the {w.thing}, because the {w.thing} is {w.colour} and {w.his} own.",
        f'"Is the {w.second} yours?" asked {w.name}. "Yes, the {w.theirs} is mine," said {w.friend}.',
        f"{w.friend} liked the {w.mine}, and {w.name} liked the {w.theirs}.",
    ]
    w.rng.shuffle(lines)
    return [w.rng.choice(meeting), *lines[: w.rng.randint(2, 5)]]


def ending(w: World) -> list[str]:
    return [
        w.rng.choice(
            [
                f"In the end {w.name} went home with the {w.mine}, and {w.friend} with the {w.theirs}.",
                f"When the {w.day} was over, {w.name} {w.worked} the {w.mine} once more.",
                f"So the {w.thing} stayed {w.colour}, and the {w.second} stayed {w.other}.",
            ]
        ),
        f"{w.name} was {w.mood}."
        if w.rng.random() < 0.6
        else f"It was {a(w.weather)} {w.day}, and all was well.",
    ]


def tale(w: World) -> str:
    return " ".join(opening(w) + middle(w) + ending(w))


def questions(w: World) -> list[tuple[str, str]]:
    """Question and answer pairs about the facts that every story states."""
    return [
        (f"What colour is the {w.thing} of {w.name}?", f"The {w.thing} of {w.name} is {w.colour}."),
        (f"Who has the {w.theirs}?", f"{w.friend} has the {w.theirs}."),
        (f"Where was {w.name}?", f"{w.name} was at the {w.place}."),
        (f"What does {w.friend} have?", f"{w.friend} has {a(w.theirs)}."),
    ]


def asked(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"\nQuestion: {question}\nAnswer: {answer}" for question, answer in pairs)


def story(rng: random.Random) -> str:
    w = World(rng)
    return tale(w) + (
        asked(rng.sample(questions(w), rng.randint(1, 3))) if rng.random() < 0.5 else ""
    )


def inventory(rng: random.Random) -> str:
    """Who has what, then the same again in another order or asked: all of it must be looked up."""
    count = rng.randint(3, 6)
    names = [name for name, _, _ in rng.sample(PEOPLE, count)]
    things = [
        f"{colour} {thing}"
        for colour, thing in zip(rng.sample(COLOURS, count), rng.sample(THINGS, count), strict=True)
    ]
    owners = list(zip(names, things, strict=True))
    place = rng.choice(PLACES)
    text = f"These people met at the {place}. " + " ".join(
        f"{name} has {a(thing)}." for name, thing in owners
    )
    rng.shuffle(owners)
    if rng.random() < 0.4:
        lost = " and ".join(f"{name} lost the {thing}" for name, thing in owners)
        return f"{text} Later at the {place} {lost}."
    return text + asked(
        [
            (f"What does {name} have?", f"{name} has {a(thing)}.")
            if rng.random() < 0.5
            else (f"Who has the {thing}?", f"{name} has the {thing}.")
            for name, thing in owners
        ]
    )


def sums(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(4, 10)):
        x, y = rng.randint(1, HIGHEST), rng.randint(1, HIGHEST)
        lines.append(
            f"{x} plus {y} is {x + y}." if rng.random() < 0.7 else f"{x + y} minus {x} is {y}."
        )
    return " ".join(lines)


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def conversation(rng: random.Random) -> list[Message]:
    """Chat messages: a sum, a request for a story, or facts told by the user and questions about
    them."""
    kind = rng.random()
    if kind < 0.3:
        messages = []
        for _ in range(rng.randint(1, 3)):
            x, y = rng.randint(1, HIGHEST), rng.randint(1, HIGHEST)
            messages += [
                said("user", f"What is {x} plus {y}?"),
                said("assistant", f"{x} plus {y} is {x + y}."),
            ]
        return messages
    w = World(rng)
    if kind < 0.6:
        return [
            said("user", f"Tell me a story about {w.name} and {a(w.mine)}."),
            said("assistant", tale(w)),
        ]
    messages = [
        said(
            "user", f"{w.name} was at the {w.place} with {a(w.mine)}. {w.friend} has {a(w.theirs)}."
        ),
        said("assistant", "I see. What do you want to know?"),
    ]
    for question, answer in rng.sample(questions(w), rng.randint(2, 3)):
        messages += [said("user", question), said("assistant", answer)]
    return messages


def documents(seed: int) -> Iterator[str | list[Message]]:
    """Endless documents: text, or chat messages. The same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        yield (
            story(rng)
            if kind < 0.4
            else inventory(rng)
            if kind < 0.55
            else sums(rng)
            if kind < 0.68
            else conversation(rng)
        )
