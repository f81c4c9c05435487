"""Images: sources, betons, order, augmentation, loader. The only place that knows FFCV."""

from kapdist.data.beton import BetonInfo, check_labels, open_beton
from kapdist.data.loader import Batch, Loader
from kapdist.data.order import epoch_order
from kapdist.data.sources import SOURCES, Source, fashion_mnist, make_source
from kapdist.data.workers import usable_cpus
from kapdist.data.write import check, check_beton, write, write_beton
from kapdist.data.writer import WriterError

__all__ = [
    "SOURCES",
    "Batch",
    "BetonInfo",
    "Loader",
    "Source",
    "WriterError",
    "check",
    "check_beton",
    "check_labels",
    "epoch_order",
    "fashion_mnist",
    "make_source",
    "open_beton",
    "usable_cpus",
    "write",
    "write_beton",
]
