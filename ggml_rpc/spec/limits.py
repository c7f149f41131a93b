"""Limits of the protocol and of this server. Every number of ours carries its reason."""

from __future__ import annotations

from typing import Final

# ---- Fixed by the protocol ---------------------------------------------------------------------------------------

DEFAULT_PORT: Final = 50052
MAX_DIMS: Final = 4
OP_PARAMS_WORDS: Final = 16
OP_PARAMS_BYTES: Final = 4 * OP_PARAMS_WORDS
MAX_NAME: Final = 64
CONN_CAPS_BYTES: Final = 24
REQUEST_HEADER_BYTES: Final = 9  # command u8, length u64
REPLY_HEADER_BYTES: Final = 8  # length u64
HASH_THRESHOLD_BYTES: Final = 10 * 1024 * 1024  # clients ask by hash only for more than this
GRAPH_CACHE_MAX: Final = 1024  # 8.0.0: both sides forget all graphs of a device when a count reaches this
COMM_PORT_OFFSET: Final = 1000
ALLREDUCE_BF16_MIN_ELEMENTS: Final = 32768

# ---- Internal, wide enough for every dialect ---------------------------------------------------------------------

MAX_SRC: Final = 16  # 10 in llama.cpp, up to 16 in ik_llama.cpp

# ---- Ours: memory layout -----------------------------------------------------------------------------------------

TENSOR_ALIGNMENT: Final = 64  # answer to GET_ALIGNMENT: a cache line and a 512-bit register; stock CPU servers say 32
BASE_CONGRUENCE: Final = 128  # virtual bases equal real ones modulo this, so that alignment of the two agrees
BUFFER_SLACK: Final = 512  # hidden bytes after each buffer: eight 512-bit loads past the tail of the last row

# ---- Ours: what one peer may make us hold ------------------------------------------------------------------------

# Clients open 12 to 100 connections, most of them short and one after the other; 256 at once leaves room for many
# clients while the thread of each (its stack is touched only in part) stays below a few hundred MiB of address space.
MAX_CONNECTIONS: Final = 256

# A model's weights, caches and compute buffers make a handful of buffers a device; 4096 is never met by a real client.
MAX_BUFFERS_PER_SESSION: Final = 4096

# The largest real graphs have some ten thousand nodes (a mixture of experts of 100 layers); the tensor list is about
# 1.4 times as long. Both bounds are powers of two above that, and bound a GRAPH_COMPUTE message to about 39 MiB.
MAX_GRAPH_NODES: Final = 1 << 16
MAX_GRAPH_TENSORS: Final = 1 << 17

# Stored graphs in compact form: 1024 graphs of 6000 tensors at about 70 bytes are 410 MiB; more than this closes the
# session.
MAX_STORED_GRAPH_BYTES: Final = 1 << 29

# All sessions together may fill a quarter of the memory with graphs: a crowd of hostile ones must not fill it all.
GRAPH_SHARE: Final = 4

# Plans of stored graphs that stay ready to run; a plan takes about 600 bytes a tensor, so some dozens fit. Decoding
# repeats one.
MAX_COMPILED_GRAPH_BYTES: Final = 16 << 20

# A payload that is streamed into a buffer needs no cap of its own (the tensor bounds it). Everything else is read
# into memory first, in pieces of at most this size, so that an announced length allocates nothing by itself.
READ_CHUNK_BYTES: Final = 1 << 20

# Strides and sizes of a tensor stay below 2^62, so that sums of two of them fit in a signed 64-bit integer.
MAX_TENSOR_BYTES: Final = 1 << 62

# ---- Ours: time --------------------------------------------------------------------------------------------------

# Seconds without a single byte of progress inside a message before the connection is closed. Idle sessions have no
# deadline: a chat may rest for days.
STALL_SECONDS: Final = 30.0

# Seconds from accept to a whole HELLO. Stock clients send it at once.
HELLO_SECONDS: Final = 10.0
