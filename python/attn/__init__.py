"""attn — exact attention on CPU and CUDA through libattn, for NumPy, torch and anything with DLPack."""
from ._api import Schedule, attention, explain, info, merge
from ._append import kv_append
from ._library import AttnError, Unsupported

__version__ = info()["version"]
__all__ = ["attention", "explain", "info", "kv_append", "merge", "AttnError", "Schedule", "Unsupported",
           "__version__"]
