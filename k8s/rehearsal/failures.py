"""How a step of the rehearsal fails."""


class StepFailed(Exception):
    """The cluster does not do what the step asks for; the text says what it did."""
