from ggml_rpc.spec.dialects import Dialect

class Codec:
    dialect: Dialect
    def __init__(self, dialect: Dialect) -> None: ...
