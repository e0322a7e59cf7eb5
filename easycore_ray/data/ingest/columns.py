"""The columns of Parquet sources: which hold images and labels, and what their classes are called.

Takes the schema of a file, gives ``SourceColumns``. What a column cannot mean is refused before anything is read, with
the columns that could be passed instead.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from easycore_ray.storage.errors import EasyCoreError

_IMAGE_NAMES = ("image", "img")
_LABEL_NAME = "label"


class SourceColumns(NamedTuple):
    """What a file's columns are.

    Attributes:
        image: name of the column of images.
        label: name of the column of labels.
        classes: names in label order, from Hugging Face's metadata; None if it has none.
    """

    image: str
    label: str
    classes: list[str] | None


def find_columns(path: str, schema: pa.Schema, *, image: str | None = None, label: str | None = None) -> SourceColumns:
    """The columns of images and labels.

    Args:
        path: of the file, for messages.
        schema: of the file.
        image: name of the column of images; ``image`` or ``img`` if None.
        label: name of the column of labels; ``label`` if None.

    Raises:
        EasyCoreError: a column is not there, or holds something else; says which could be passed.
    """
    images = [name for name in ([image] if image else _IMAGE_NAMES) if name in schema.names]
    labels = [name for name in [label or _LABEL_NAME] if name in schema.names]
    if not images or not labels:
        raise EasyCoreError(_missing_text(path, schema, image, label, bool(images), bool(labels)))
    if not _holds_images(schema.field(images[0]).type):
        raise EasyCoreError(
            f"{path} has {images[0]} of {schema.field(images[0]).type}; needed are image files in bytes or "
            "struct<bytes, path>; save arrays of pixels as PNG, and leave normalisation, which is part of every "
            "model, out"
        )
    kind = schema.field(labels[0]).type
    if not _holds_labels(kind):
        cast = "; cast the column to int64" if pa.types.is_floating(kind) else ""
        others = _passable("--label-column", [name for name in _label_columns(schema) if name != labels[0]])
        raise EasyCoreError(
            f"{path} has {labels[0]} of {kind}; needed is one whole number or class name for each image{cast}{others}"
        )
    return SourceColumns(images[0], labels[0], _class_label_names(schema, labels[0]))


def _missing_text(
    path: str, schema: pa.Schema, image: str | None, label: str | None, has_image: bool, has_label: bool
) -> str:
    wanted_image = image or "image (or img)"
    hints = "" if has_image else _passable("--image-column", _image_columns(schema))
    hints += "" if has_label else _passable("--label-column", _label_columns(schema))
    return (
        f"{path} has the columns {', '.join(schema.names)}; needed are {wanted_image} of bytes or "
        f"struct<bytes, path>, and {label or _LABEL_NAME}{hints}"
    )


def _passable(option: str, names: Sequence[str]) -> str:
    return f"; pass {' or '.join(f'{option} {name}' for name in names[:4])}" if names else ""


def _image_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _holds_images(field.type)]


def _label_columns(schema: pa.Schema) -> list[str]:
    """Columns that may hold labels: those with class names if there are any, else whole numbers and text."""
    named = [field.name for field in schema if _class_label_names(schema, field.name)]
    return named or [field.name for field in schema if _holds_labels(field.type)]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _class_label_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the ``ClassLabel`` feature that the datasets library keeps in the schema's metadata."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] or None
