"""Hugging Face: `import rookery.hf`, and transformers' Auto classes open RWKV folders of every version.

AutoConfig, AutoModelForCausalLM and AutoTokenizer learn the model types rwkv5, rwkv6 and rwkv7 of the usual loaders,
and rookery_rwkv4, which `save_pretrained` writes; "rwkv" (v4) stays transformers' own. `RwkvForCausalLM` opens them
all, and every other file that Rookery reads. A folder's Python is not run, `trust_remote_code=True` or not.
"""

from __future__ import annotations

try:
    import torch as torch
    import transformers as transformers
except ImportError:
    from rookery.errors import MissingExtra

    raise MissingExtra("rookery.hf", "transformers") from None

from rookery.hf.cache import RwkvCache
from rookery.hf.config import RwkvConfig
from rookery.hf.model import RwkvForCausalLM, RwkvOutput
from rookery.hf.register import register
from rookery.hf.tokenizer import RwkvTokenizer

register()

__all__ = ["RwkvCache", "RwkvConfig", "RwkvForCausalLM", "RwkvOutput", "RwkvTokenizer"]
