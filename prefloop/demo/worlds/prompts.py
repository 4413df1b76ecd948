"""What people of the world `assistant` ask: families of prompts, each made of topics and phrasings.

People ask four families. Held out are other topics of those, in other phrasings, and two families that nobody asks. Most
prompts say how long an answer should be, or a small model would talk to the token limit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Prompts of one kind. `asked` and `phrasings` make what people ask; `held_out` and `held_out_phrasings` the rest.

    A family without `asked` topics is held out as a whole.
    """

    name: str
    asked: tuple[str, ...]
    held_out: tuple[str, ...]
    phrasings: tuple[str, ...]
    held_out_phrasings: tuple[str, ...]


EXPLAIN = Family(
    "explain",
    asked=(
        "how rainbows form", "why the sky is blue", "how bread rises", "why leaves change colour in autumn",
        "how a bicycle stays upright", "why the moon has phases", "how vaccines work", "why we dream",
        "how a fridge keeps food cold", "why the sea is salty", "how bees make honey", "why onions make us cry",
        "how a microwave heats food", "why cats purr", "how soap cleans hands", "why ice floats on water",
        "how the internet sends a message", "why we yawn", "how a candle burns", "why stars twinkle",
    ),
    held_out=(
        "how tides work", "why thunder follows lightning", "how a mirror works", "why popcorn pops",
        "how trees drink water", "why metal feels colder than wood", "how a lock and key work", "why we get hiccups",
    ),
    phrasings=(
        "Explain in two sentences {topic}.", "Briefly explain {topic}.",
        "Tell me {topic}. One or two sentences, please.", "In one sentence, explain {topic}.",
    ),
    held_out_phrasings=(
        "Help me understand {topic} in a sentence or two.", "My son wants to know {topic}. What is a short answer?",
    ),
)  # fmt: skip

LIST = Family(
    "list",
    asked=(
        "uses for old newspapers", "things to pack for a beach trip", "healthy snacks for work",
        "games for a long car ride", "ways to save electricity at home", "gifts for a grandmother",
        "vegetables that grow in small pots", "hobbies for winter evenings", "things to do on a rainy day",
        "questions to ask at a job interview", "ways to use leftover rice", "exercises that need no equipment",
        "things to check before a holiday", "ideas for a birthday party", "ways to learn new words",
        "animals that live in the desert", "jobs that involve animals", "tools for a first toolbox",
        "songs or stories for bedtime", "ways to thank a teacher",
    ),
    held_out=(
        "uses for glass jars", "things to pack for a mountain hike", "quick breakfasts for children",
        "ways to save water at home", "gifts for a new neighbour", "flowers for a shady garden",
        "ways to use stale bread", "sports to play indoors",
    ),
    phrasings=(
        "Name three {topic}.", "What are three {topic}? Keep it short.", "Give me three {topic}.",
        "I need three {topic}. Be brief.",
    ),
    held_out_phrasings=("Which three {topic} come to your mind?", "Tell me two or three {topic}, please."),
)  # fmt: skip

ADVISE = Family(
    "advise",
    asked=(
        "fall asleep faster", "ask for a raise", "get to know my neighbours", "stop biting my nails",
        "study for an exam", "keep houseplants alive", "cook more at home", "spend less time on my phone",
        "calm down before a speech", "save money every month", "get up earlier", "make friends in a new city",
        "choose a first guitar", "get over a cold", "say no politely", "train a puppy", "organise a small kitchen",
        "start running", "learn a language at home", "apologise to a friend",
    ),
    held_out=(
        "drink more water", "prepare for a long flight", "get along with a loud roommate", "stop putting things off",
        "choose a used bicycle", "remember names", "keep a diary", "welcome a shy colleague",
    ),
    phrasings=(
        "What is one way to {topic}?", "How can I {topic}? Answer in two sentences.",
        "I want to {topic}. What do you suggest, in short?", "Give me one tip: I want to {topic}.",
    ),
    held_out_phrasings=(
        "Someone I know finds it hard to {topic}. One tip, please.", "In a sentence or two, what helps to {topic}?",
    ),
)  # fmt: skip

WRITE = Family(
    "write",
    asked=(
        "a thank-you note to a neighbour who watered my plants", "an invitation to a picnic",
        "a birthday message for my sister", "an apology for being late", "a note for my landlord about a leak",
        "a message to cancel a dentist appointment", "a welcome note for a guest", "a caption for a beach photo",
        "a get-well message for a colleague", "a poem about autumn", "a notice about a lost cat",
        "a message to congratulate a new parent", "a farewell note to a colleague", "a request for a day off",
        "a review of a cosy cafe", "a reminder about a team meeting", "a slogan for a bakery",
        "a message to thank a teacher", "a text for a holiday card", "a note to go with a gift of honey",
    ),
    held_out=(
        "a thank-you note to a doctor", "an invitation to a game night", "a message to move a meeting to Friday",
        "a poem about rain", "a notice about a yard sale", "a message to congratulate a graduate",
        "a review of a bookshop", "a slogan for a flower shop",
    ),
    phrasings=(
        "Write {topic} in two sentences.", "Write {topic}. Keep it short.",
        "Can you draft {topic}? Two sentences are enough.", "I need {topic}, one or two sentences.",
    ),
    held_out_phrasings=("Help me with {topic}, short and simple.", "Compose {topic} of two sentences."),
)  # fmt: skip

COMPARE = Family(
    "compare",
    asked=(),
    held_out=(
        "tea and coffee", "a lake and a pond", "cats and dogs as pets", "trains and planes for travelling",
        "paper books and e-books", "winter and summer", "cycling and walking to work", "a city and a village to live in",
    ),
    phrasings=(),
    held_out_phrasings=("Compare {topic} in two sentences.", "What is the main difference between {topic}?"),
)  # fmt: skip

PLAN = Family(
    "plan",
    asked=(),
    held_out=(
        "a rainy Sunday at home", "a simple dinner for four", "a day trip with children", "a week without sugar",
        "a spring clean of a small flat", "a first visit to a museum", "a quiet evening for two", "a small garden party",
    ),
    phrasings=(),
    held_out_phrasings=("Plan {topic} in three short steps.", "In a few words, what could {topic} look like?"),
)  # fmt: skip

FAMILIES = (EXPLAIN, LIST, ADVISE, WRITE, COMPARE, PLAN)


@dataclass(frozen=True)
class Prompt:
    """One prompt, its family and its topic."""

    text: str
    family: str
    topic: str


def asked_prompts() -> list[Prompt]:
    """What people ask: 320 prompts of four families."""
    return [
        Prompt(phrasing.format(topic=topic), family.name, topic)
        for family in FAMILIES
        for topic in family.asked
        for phrasing in family.phrasings
    ]


def held_out_prompts() -> list[Prompt]:
    """96 prompts that nobody asks, of six families: no topic and no phrasing of them is asked."""
    return [
        Prompt(phrasing.format(topic=topic), family.name, topic)
        for family in FAMILIES
        for topic in family.held_out
        for phrasing in family.held_out_phrasings
    ]
