"""A dialect in native form."""

from libc.string cimport memset, strncpy

from ggml_rpc.native cimport MAX_ENUM_PARAMS, MAX_ENUM_VALUE

from ggml_rpc.spec import limits
from ggml_rpc.spec.commands import Command, ReplyKind
from ggml_rpc.spec.dialects import GraphCache, HashCacheRule
from ggml_rpc.spec.ops import OPS

cdef int _NONE = -1

# In the order of EnumTable in csrc/wire/dialect.h.
ENUMS = ("unary", "glu", "prec", "pool", "sort_order", "scale_mode", "tri", "op_hint")


cdef _offset(fields, name):
    for f in fields:
        if f.name == name:
            return f.offset
    return _NONE


cdef class Codec:
    """Hold the native table of one dialect.

    Parameters
    ----------
    dialect : ggml_rpc.spec.dialects.Dialect
        The table to convert.
    """

    def __cinit__(self, dialect):
        self.dialect = dialect
        cdef DialectTable *t = &self.table
        memset(<void *> t, 0, sizeof(DialectTable))
        name = dialect.name.encode()
        strncpy(t.name, <const char *> name, sizeof(t.name) - 1)
        self._record(dialect.record)
        self._commands(dialect)
        cdef int i
        for i in range(256):
            t.op_of[i] = dialect.ops[i] if i < len(dialect.ops) else _NONE
        for i in range(512):
            t.type_of[i] = dialect.types[i] if i < len(dialect.types) else _NONE
        self._enums(dialect)
        t.kv_bound = dialect.kv_bound
        t.set_rows_by_view = dialect.set_rows_by_view
        t.ik_meaning = dialect.ik_meaning

    cdef _enums(self, dialect):
        cdef DialectTable *t = &self.table
        cdef int i, value
        tables = {**dialect.enums, "unary": dict(enumerate(dialect.unary)), "glu": dict(enumerate(dialect.glu))}
        for i, name in enumerate(ENUMS):
            for value in range(MAX_ENUM_VALUE + 1):
                t.enum_of[i][value] = tables[name].get(value, _NONE)
        params = [(o, p) for o in OPS for p in o.params if p.enum is not None]
        if len(params) > MAX_ENUM_PARAMS:
            raise ValueError(f"{len(params)} parameters are enumerations, the table holds {MAX_ENUM_PARAMS}")
        t.n_enum_params = len(params)
        for i, (op, param) in enumerate(params):
            t.enum_params[i].op = op.id
            t.enum_params[i].word = param.word
            t.enum_params[i].mask = param.mask
            t.enum_params[i].table = ENUMS.index(param.enum)

    cdef _record(self, record):
        cdef DialectTable *t = &self.table
        at = record.offsets
        t.tensor.bytes = record.size
        t.tensor.id = at["id"]
        t.tensor.type = at["type"]
        t.tensor.buffer = at["buffer"]
        t.tensor.ne = at["ne"]
        t.tensor.nb = at["nb"]
        t.tensor.op = at["op"]
        t.tensor.params = at["op_params"]
        t.tensor.flags = at["flags"]
        t.tensor.src = at["src"]
        t.tensor.view_src = at["view_src"]
        t.tensor.view_offs = at["view_offs"]
        t.tensor.data = at["data"]
        t.tensor.name = at["name"]
        t.tensor.use_count = at["use_count"] if record.has_use_count else _NONE
        t.tensor.dim_bytes = record.dim_bytes
        t.tensor.n_src = record.max_src
        t.tensor.n_name = limits.MAX_NAME

    cdef _commands(self, dialect):
        cdef DialectTable *t = &self.table
        cdef int i
        for i in range(256):
            t.command_of[i] = _NONE
        replies = {ReplyKind.NONE: 0, ReplyKind.EMPTY: 1, ReplyKind.FIXED: 2, ReplyKind.SIZED: 2}
        for command, number in dialect.commands.items():
            t.command_of[number] = int(command)
            size = dialect.request_size(command)
            t.request_bytes[int(command)] = _NONE if size is None else size
            t.reply[int(command)] = replies[dialect.reply_kind(command)]
        set_tensor = dialect.request_fields(Command.SET_TENSOR)
        t.set_tensor_flag = _offset(set_tensor, "cache_flag")
        t.set_tensor_offset = _offset(set_tensor, "offset")
        t.set_tensor_header = _offset(set_tensor, "data")
        graph = dialect.request_fields(Command.GRAPH_COMPUTE)
        t.graph_device = _offset(graph, "device")
        t.graph_uid = _offset(graph, "uid")
        t.graph_n_nodes = _offset(graph, "n_nodes")
        t.recompute_device = _NONE
        t.recompute_uid = _NONE
        t.recompute_offsets = _NONE
        if Command.GRAPH_RECOMPUTE in dialect.commands:
            recompute = dialect.request_fields(Command.GRAPH_RECOMPUTE)
            t.recompute_device = _offset(recompute, "device")
            t.recompute_uid = _offset(recompute, "uid")
            t.recompute_offsets = _offset(recompute, "n_view_offs")
        t.graph_cache_max = limits.GRAPH_CACHE_MAX if dialect.graph_cache is GraphCache.BY_UID else 0
        t.device_field = dialect.has_devices
        t.alloc_size_has_srcs = dialect.alloc_size_has_srcs
        t.compute_flag = dialect.compute_flag
        t.graph_status = dialect.graph_status_reply
        t.cache_by_flag = dialect.hash_cache_rule is HashCacheRule.FLAG
