"""Caffe's solver states, ``.solverstate`` and ``.solverstate.h5``: with the weights, what training resumes from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np

from weights_conversion import caffe_pb2, hdf5
from weights_conversion.files import atomic_path
from weights_conversion.wire import LEN, VARINT, Field, WireFile, blob_field, open_wire

# SolverState's fields, by number
_ITER, _LEARNED_NET, _HISTORY, _CURRENT_STEP = 1, 2, 3, 4


@dataclass(frozen=True, eq=False)
class SolverState:
    """``iter``: iterations done. ``current_step``: how often the rate was stepped down (policies step, multistep).

    ``history``: one float32 array per parameter, in the order of the net's parameters (layer by layer, weight before
    bias), in the file's shapes; SGD's holds the momentum *with* the learning rate in it. AdaDelta and Adam have two:
    first all of one kind (squared gradients; means), then all of the other (squared updates; squares).
    ``learned_net``: the path of the weights that belong to it, as Caffe wrote it.
    """

    iter: int
    current_step: int
    learned_net: str
    history: list[np.ndarray]


def read_solverstate(path: str | os.PathLike[str]) -> SolverState:
    """Read a solver state; its form is told from its first bytes, not from its name.

    Raises ``CaffeFileError`` (a ``ValueError``) if the file cannot be opened, is damaged or of another kind,
    or has no iteration or no history.
    """
    with open_wire(path) as file:
        if not file.head.startswith(hdf5.MAGIC):
            return _read_binary(file)
    reader = hdf5.HDF5Reader(path, "iter", "current_step", "learned_net", "history")
    state = SolverState(
        iter=reader.integer("iter"),
        current_step=reader.integer("current_step"),
        learned_net=reader.text("learned_net"),
        history=reader.blobs("/history"),
    )
    return _checked(state, reader)


def _read_binary(file: WireFile) -> SolverState:
    file.check_binary(".solverstate")
    header: list[Field] = []
    history: list[np.ndarray] = []
    for field in file.fields(0, file.size, ""):
        if field.number == _HISTORY:
            history.append(file.blob(field, f"history {len(history)} (at byte {field.tag_at})").values)
        elif field.number in (_ITER, _LEARNED_NET, _CURRENT_STEP):
            file.expect(field, LEN if field.number == _LEARNED_NET else VARINT, "")
            header.append(field)
    message = file.header(caffe_pb2.SolverState, header, "")
    if not message.HasField("iter"):
        raise file.error("", "no iteration: not a .solverstate")
    learned_net = file.text(message.learned_net, "learned_net")
    return _checked(SolverState(message.iter, message.current_step, learned_net, history), file)


def _checked(state: SolverState, file: WireFile | hdf5.HDF5Reader) -> SolverState:
    if state.iter < 0 or state.current_step < 0:
        raise file.error("", f"iter {state.iter}, current_step {state.current_step}: negative")
    if not state.history:
        raise file.error("", "no history")
    return state


def write_solverstate(
    path: str | os.PathLike[str],
    iter: int,
    current_step: int,
    history: Sequence[np.ndarray],
    learned_net: str = "",
) -> None:
    """Write a solver state that Caffe can resume from, as HDF5 if ``path`` ends in .h5.

    ``history`` as in ``SolverState``, written as float32. The file appears whole or not at all.
    """
    with atomic_path(path) as temporary:
        if temporary.suffix == ".h5":
            with h5py.File(temporary, "w") as file:
                file["iter"] = np.array([iter], np.int32)
                file["current_step"] = np.array([current_step], np.int32)
                # Caffe reads a C string from a field of fixed size, so there must be room for its final zero.
                encoded = learned_net.encode()
                file["learned_net"] = np.array(encoded, f"S{len(encoded) + 1}")
                group = file.create_group("history")
                for index, values in enumerate(history):
                    group[str(index)] = np.asarray(values, np.float32)
        else:
            message = caffe_pb2.SolverState(
                iter=iter, current_step=current_step, learned_net=learned_net.encode()
            )
            with temporary.open("wb") as out:
                out.write(message.SerializeToString())
                for values in history:
                    head, floats = blob_field(_HISTORY, np.asarray(values, np.float32))
                    out.write(head)
                    out.write(floats.data)
