from ggml_rpc.native cimport DialectTable


cdef class Codec:
    cdef DialectTable table
    cdef readonly object dialect
    cdef _enums(self, dialect)
    cdef _record(self, record)
    cdef _commands(self, dialect)
