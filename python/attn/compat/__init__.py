"""compat — drop-in modules: attn.compat.install() makes `import flash_attn`, `flash_attn_interface`,
`flash_mla` ours."""
import importlib
import sys

_NAMES = {
    "flash_attn": "attn.compat.flash_attn",
    "flash_attn.flash_attn_interface": "attn.compat.flash_attn",
    "flash_attn.bert_padding": "attn.compat.bert_padding",
    "flash_attn.layers": "attn.compat.rotary",
    "flash_attn.layers.rotary": "attn.compat.rotary",
    "flash_attn_interface": "attn.compat.flash_attn_interface",
    "flash_mla": "attn.compat.flash_mla",
}


def install(*names, force=False):
    """Put our modules under these import names (default: all of them).

    A module that is already imported under such a name is left alone unless force=True. Returns the names
    set.
    """
    done = []
    for name, ours in _NAMES.items():
        if names and name.split(".")[0] not in names:
            continue
        present = sys.modules.get(name)
        if present is not None and not force and not present.__name__.startswith("attn.compat"):
            continue
        sys.modules[name] = importlib.import_module(ours)
        done.append(name)
    return done


def uninstall():
    """Undo install()."""
    for name in _NAMES:
        module = sys.modules.get(name)
        if module is not None and module.__name__.startswith("attn.compat"):
            del sys.modules[name]
