"""Readers: functions that return a new iterator of samples. A sample is a tuple, one value for each data layer."""

from __future__ import annotations

from opsin.v2.minibatch import batch as batch
from opsin.v2.reader import creator as creator
from opsin.v2.reader.decorator import ComposeNotAligned as ComposeNotAligned
from opsin.v2.reader.decorator import buffered as buffered
from opsin.v2.reader.decorator import chain as chain
from opsin.v2.reader.decorator import compose as compose
from opsin.v2.reader.decorator import firstn as firstn
from opsin.v2.reader.decorator import map_readers as map_readers
from opsin.v2.reader.decorator import pipe_reader as pipe_reader
from opsin.v2.reader.decorator import shuffle as shuffle
from opsin.v2.reader.decorator import xmap_readers as xmap_readers

batched = batch  # so it was called for some days of March 2017
