"""The errors users see: a single line that says what is wrong, the value seen, what is allowed, what to do."""


class EasyCoreError(ValueError):
    """A mistake at the boundary (input, path, cluster), worded for the person who made it.

    Jobs print it as one line and exit with code 2; anything else that escapes is a bug of ours
    and keeps its traceback.
    """


class FieldsError(EasyCoreError):
    """What is wrong with the fields of a configuration: one sentence each in ``problems``, all in the message."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
