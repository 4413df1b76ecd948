"""The error tree of the feedback package. Callers catch `FeedbackError`, or the leaf they can do something about."""

from __future__ import annotations


class FeedbackError(Exception):
    """Anything the feedback package refuses or cannot do."""


class SettingsError(FeedbackError):
    """The settings cannot be used; the message is one line that names the file or the variable."""


class EventError(FeedbackError):
    """An event that cannot be read; it goes to the dead letters, with its bytes."""


class PoisonEvent(EventError):
    """The bytes are not what their headers claim."""


class FutureVersion(EventError):
    """Written by a newer release: a later reader can replay it."""


class LogError(FeedbackError):
    """The log could not do what was asked."""


class LogUnavailable(LogError):
    """The log does not answer now; the same call may succeed later."""


class OffsetOutOfRange(LogError):
    """The offset lies outside [begin, end]: retention took it, or it was never written."""

    def __init__(self, topic: str, partition: int, offset: int, begin: int, end: int) -> None:
        super().__init__(f"{topic}[{partition}]: offset {offset} is outside {begin}..{end}")
        self.topic, self.partition, self.offset, self.begin, self.end = topic, partition, offset, begin, end


class DatabaseError(FeedbackError):
    """The database cannot be used as asked."""


class DatabaseUnavailable(DatabaseError):
    """The database did not answer in time; a later start may find it."""


class NewerSchema(DatabaseError):
    """The database was migrated by a newer release than this one."""

    def __init__(self, store: str, stands_at: str, known: str) -> None:
        super().__init__(
            f"the {store} database has schema {stands_at}, this release knows them up to {known}: run the newer release"
        )


class WriterClosed(DatabaseError):
    """The writer takes no more work."""


class ChoiceError(FeedbackError):
    """A choice that is not recorded."""

    def __init__(self, comparison_id: str, message: str) -> None:
        super().__init__(message)
        self.comparison_id = comparison_id


class UnknownComparison(ChoiceError):
    """No such comparison was ever shown."""

    def __init__(self, comparison_id: str) -> None:
        super().__init__(comparison_id, "No such comparison.")


class ExpiredComparison(ChoiceError):
    """The choice came after the comparison's expiry."""

    def __init__(self, comparison_id: str) -> None:
        super().__init__(comparison_id, "This comparison has expired.")


class ConflictingChoice(ChoiceError):
    """Another choice was already recorded for this comparison."""

    def __init__(self, comparison_id: str) -> None:
        super().__init__(comparison_id, "Another choice was already made for this comparison.")


class SignalError(FeedbackError):
    """A signal that is not recorded."""


class ConflictingSignal(SignalError):
    """The idempotency key was used for another signal."""

    def __init__(self) -> None:
        super().__init__("This idempotency key was used for another signal.")


class InboxError(FeedbackError):
    """The reader and its database disagree about the position."""


class PositionMismatch(InboxError):
    """A batch does not start where the inbox stands: seek to `next_offset` and read again."""

    def __init__(self, topic: str, partition: int, offset: int, next_offset: int) -> None:
        super().__init__(f"{topic}[{partition}]: read from {offset}, but the inbox stands at {next_offset}")
        self.topic, self.partition, self.offset, self.next_offset = topic, partition, offset, next_offset


class ManifestError(FeedbackError):
    """A checkpoint directory that must not be served: missing, altered, or holding files that may run code."""


class SignatureError(ManifestError):
    """A manifest that is not signed by a trusted key."""


class SigningKeyError(FeedbackError):
    """A file of keys that cannot be used."""


class StoreUnavailable(FeedbackError):
    """The checkpoint store does not answer now, or not yet: the same call may succeed later."""


class UnknownCheckpoint(FeedbackError):
    """The checkpoint store holds no such checkpoint: it was never published there, or it was deleted."""


class ReplayError(FeedbackError):
    """A replay that would leave a hole in the store, or that the store does not take."""


class ImportExportError(FeedbackError):
    """A file of feedback that cannot be read or written as asked; the message says where."""
