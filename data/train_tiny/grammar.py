"""The corpus of the embedded model: small stories, sums and conversations from a grammar, any amount, by seed.

Facts recur at a distance (who, which colour, how many, where), so that a model must remember to predict them: the
perplexity says something, and so does a wrong colour.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

PEOPLE = [("Mira", "she", "her"), ("Tom", "he", "his"), ("Ana", "she", "her"), ("Wei", "he", "his"),
          ("Lena", "she", "her"), ("Omar", "he", "his"), ("Yuki", "she", "her"), ("Ivan", "he", "his"),
          ("Nora", "she", "her"), ("Sam", "he", "his"), ("Rosa", "she", "her"), ("Kofi", "he", "his")]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "silver", "orange"]
THINGS = ["kite", "boat", "lamp", "drum", "bell", "cart", "hat", "box", "flag", "clock"]
FOOD = ["apples", "pears", "plums", "nuts", "cakes", "shells", "stones", "coins"]
PLACES = ["river", "market", "hill", "garden", "harbour", "forest", "bridge", "tower", "school", "mill"]
ANIMALS = ["fox", "owl", "goat", "heron", "cat", "dog", "hare", "crow"]
WEATHER = ["warm", "cold", "windy", "quiet", "rainy", "bright"]
MOODS = ["glad", "tired", "proud", "calm", "curious", "brave"]
DAYS = ["morning", "evening", "afternoon", "night"]
WORK = ["mends", "paints", "carries", "cleans", "finds", "hides"]
DONE = {"mends": "mended", "paints": "painted", "carries": "carried", "cleans": "cleaned", "finds": "found",
        "hides": "hid"}


@dataclass
class World:
    """The facts of one document; every sentence about them is drawn from here."""

    rng: random.Random

    def __post_init__(self) -> None:
        pick = self.rng.choice
        (self.name, self.he, self.his), (self.friend, self.he2, self.his2) = self.rng.sample(PEOPLE, 2)
        self.colour, self.other = self.rng.sample(COLOURS, 2)
        self.thing, self.second = self.rng.sample(THINGS, 2)
        self.place, self.far = self.rng.sample(PLACES, 2)
        self.food, self.animal, self.weather = pick(FOOD), pick(ANIMALS), pick(WEATHER)
        self.mood, self.day, self.work = pick(MOODS), pick(DAYS), pick(WORK)
        self.have, self.more = self.rng.randint(2, 9), self.rng.randint(2, 9)


def opening(w: World) -> list[str]:
    he = w.he.capitalize()
    return [
        w.rng.choice([f"Once upon a time {w.name} lived near the {w.place}.",
                      f"One {w.weather} {w.day} {w.name} went to the {w.place}.",
                      f"{w.name} lives in a house by the {w.place}."]),
        w.rng.choice([f"{he} had a {w.colour} {w.thing}.", f"There {w.he} kept a {w.colour} {w.thing}.",
                      f"In {w.his} bag was a {w.colour} {w.thing}."]),
    ]


def middle(w: World) -> list[str]:
    he = w.he.capitalize()
    meeting = [f"{w.friend} came with a {w.other} {w.second} and sat down beside {w.name}.",
               f"At the {w.place} {w.he} met {w.friend}, who had a {w.other} {w.second}."]
    counting = (f"{he} had {w.have} {w.food}. {w.friend} gave {w.name} {w.more} more, so now {w.he} had "
                f"{w.have + w.more} {w.food}.")
    animal = w.rng.choice([f"A {w.animal} watched them from the {w.far} and did not move.",
                           f"Then a {w.animal} ran to the {w.far}, and they followed it."])
    work = f"Every {w.day} {w.name} {w.work} the {w.thing}, because the {w.thing} is {w.colour} and {w.his} own."
    swap = f"\"Is the {w.second} yours?\" asked {w.name}. \"Yes, the {w.other} {w.second} is mine,\" said {w.friend}."
    lines = [counting, animal, work, swap]
    w.rng.shuffle(lines)
    return [w.rng.choice(meeting), *lines[: w.rng.randint(2, 4)]]


def ending(w: World) -> list[str]:
    return [
        w.rng.choice([f"In the end {w.name} went home with the {w.colour} {w.thing}, and {w.friend} with the {w.other} "
                      f"{w.second}.",
                      f"When the {w.day} was over, {w.name} {DONE[w.work]} the {w.colour} {w.thing} once more.",
                      f"So the {w.thing} stayed {w.colour}, and the {w.second} stayed {w.other}."]),
        f"{w.name} was {w.mood}." if w.rng.random() < 0.6 else f"It was a {w.weather} {w.day}, and all was well.",
    ]


def questions(w: World) -> list[tuple[str, str]]:
    """Question and answer pairs about the facts that every story states."""
    return [(f"What colour is the {w.thing} of {w.name}?", f"The {w.thing} of {w.name} is {w.colour}."),
            (f"Who has the {w.other} {w.second}?", f"{w.friend} has the {w.other} {w.second}."),
            (f"Where was {w.name}?", f"{w.name} was at the {w.place}."),
            (f"What does {w.friend} have?", f"{w.friend} has a {w.other} {w.second}.")]


def story(rng: random.Random) -> str:
    w = World(rng)
    text = " ".join(opening(w) + middle(w) + ending(w))
    if rng.random() < 0.5:
        for question, answer in rng.sample(questions(w), rng.randint(1, 3)):
            text += f"\nQuestion: {question}\nAnswer: {answer}"
    return text


def sums(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(4, 10)):
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        lines.append(f"{a} plus {b} is {a + b}." if rng.random() < 0.6 else f"{a + b} minus {a} is {b}.")
    return " ".join(lines)


def conversation(rng: random.Random) -> list[dict[str, str]]:
    """Chat messages: a sum, a request for a story, or a story told by the user and a question about it."""
    kind = rng.random()
    if kind < 0.3:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        return [{"role": "user", "content": f"What is {a} plus {b}?"},
                {"role": "assistant", "content": f"{a} plus {b} is {a + b}."}]
    w = World(rng)
    if kind < 0.6:
        text = " ".join(opening(w) + middle(w) + ending(w))
        return [{"role": "user", "content": f"Tell me a story about {w.name} and a {w.colour} {w.thing}."},
                {"role": "assistant", "content": text}]
    facts = " ".join([f"{w.name} was at the {w.place} with a {w.colour} {w.thing}.",
                      f"{w.friend} has a {w.other} {w.second}."])
    messages = [{"role": "user", "content": facts},
                {"role": "assistant", "content": "I see. What do you want to know?"}]
    for question, answer in rng.sample(questions(w), 2):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def documents(seed: int) -> Iterator[str | list[dict[str, str]]]:
    """Endless documents: text, or chat messages. The same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        yield story(rng) if kind < 0.6 else sums(rng) if kind < 0.7 else conversation(rng)
