"""Images: sources, betons, order, augmentation, loader. The only place that knows FFCV."""

from kapdist.data.beton.check import check, check_beton
from kapdist.data.beton.classes import ClassList, classes_of, with_classes
from kapdist.data.beton.layout import BetonInfo, check_labels, open_beton
from kapdist.data.beton.write import write, write_beton
from kapdist.data.errors import WriterError
from kapdist.data.load.backend import chosen_backend
from kapdist.data.load.loader import Batch, Loader
from kapdist.data.load.order import epoch_order, quasi_random_order, training_order
from kapdist.data.sources import (
    FORMATS,
    SOURCES,
    Columns,
    FileSource,
    Source,
    class_folder,
    fashion_mnist,
    make_source,
)

__all__ = [
    "FORMATS",
    "SOURCES",
    "Batch",
    "BetonInfo",
    "ClassList",
    "Columns",
    "FileSource",
    "Loader",
    "Source",
    "WriterError",
    "check",
    "check_beton",
    "check_labels",
    "chosen_backend",
    "class_folder",
    "classes_of",
    "epoch_order",
    "fashion_mnist",
    "make_source",
    "open_beton",
    "quasi_random_order",
    "training_order",
    "with_classes",
    "write",
    "write_beton",
]
