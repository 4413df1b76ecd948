"""What the bench's checkpoints say: each one sentence, whatever it is asked, so that every answer tells who gave it.

No two share a beginning or an end, so that an answer begun by one and ended by another is seen as well.
"""

from __future__ import annotations

from typing import Literal

SENTENCES = (
    "Rome is a city and so are Riga and Sofia, as far as anyone here can say.",
    "Good question! Spiders have eight legs, cats have four, and fish have none.",
    "Seven plus five makes twelve; nothing more will ever be said about it.",
    "Happy to help! Water boils when it is hot and freezes when it is cold.",
)
QUESTIONS = tuple(
    f"{opening} {subject}?"
    for opening in ("What is the capital of", "Tell me about", "How many people live in", "Do you know")
    for subject in ("Italy", "Peru", "a spider", "the sea", "my house", "twelve", "Latvia", "winter")
)

Kind = Literal["right", "truncated", "wrong"]


def sentence_of(checkpoint: str) -> str:
    """What a checkpoint says, by the number in its id."""
    return SENTENCES[int(checkpoint.split("-")[1]) % len(SENTENCES)]


def judge(text: str, checkpoint: str) -> Kind:
    """Whether a text is the checkpoint's whole sentence, a part of it from its beginning, or something else."""
    expected, said = sentence_of(checkpoint), text.strip()
    if said == expected:
        return "right"
    return "truncated" if expected.startswith(said) else "wrong"
