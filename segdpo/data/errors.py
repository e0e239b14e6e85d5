"""What a data set that cannot be read raises."""


class DataError(ValueError):
    """Data that is damaged, missing or says something impossible; the message names file, line or id, and the fix.

    `kind` is a short word that reports count by: "unreadable", "size", "class", "mask format", "id", "manifest",
    "preference", "damaged", "version".
    """

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, str]]:
        # Workers of a DataLoader send their errors pickled; the kind has to survive that.
        return type(self), (str(self), self.kind)


def raise_all(errors: list[DataError]) -> None:
    """Raise what was found as one error that lists them all; nothing if there is none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DataError("; ".join(str(error) for error in errors), errors[0].kind)
