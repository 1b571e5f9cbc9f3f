"""Packaging. Floors are here; the tested set of versions is in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "src/llmforge/__init__.py").read_text()).group(1)

EXTRAS = {
    "deepspeed": ["deepspeed>=0.18"],
    "serve": ["aiohttp>=3.11", "fastapi>=0.115", "uvicorn>=0.30", "prometheus-client>=0.20", "llguidance>=1.0"],
    "webui": ["gradio>=6.27", "psutil>=5.9", "httpx>=0.27"],
    "data": [
        "openai>=2.0",
        "jsonschema>=4.20",
        "json-repair>=0.40",
        "rapidfuzz>=3.9",
        "datasketch>=1.6.5",
        "llguidance>=1.0",
        "jieba>=0.42.1",
        "openpyxl>=3.1",
    ],
    "eval": ["jieba>=0.42.1", "sacrebleu>=2.4"],
    "gguf": ["gguf>=0.17", "xllamacpp>=2026.10", "aiohttp>=3.11"],
    "sentencepiece": ["sentencepiece>=0.2", "protobuf>=4.25", "tiktoken>=0.7"],
    "bitsandbytes": ["bitsandbytes>=0.45"],
    "modelscope": ["modelscope>=1.20"],
}
ALL = ("serve", "webui", "data", "eval", "gguf", "sentencepiece")
EXTRAS["all"] = sorted({p for name in ALL for p in EXTRAS[name]})
EXTRAS["dev"] = [
    *EXTRAS["all"],
    *EXTRAS["deepspeed"],
    "pytest>=8",
    "pytest-cov>=5",
    "httpx>=0.27",
    "hypothesis>=6.100",
    "jsonschema>=4.20",
    "ruff>=0.8",
    "mypy>=1.11",
    "langchain-openai>=1.0",
    "schemathesis>=4.0",
    "playwright>=1.50",
    "axe-playwright-python>=0.1.4",
    "types-PyYAML",
]

SHIPPED = {
    "configs": ["*.yaml", "**/*.json", "**/*.j2"],
    "recipes": ["**/*.yaml", "**/*.json", "**/*.csv", "**/*.j2", "**/*.txt"],
    "data": ["*.json", "*.jsonl", "*.csv", "*.txt", "*.py", "words/*.yaml"],
}

setup(
    name="llmforge",
    version=VERSION,
    description="From raw data to a served domain language model, driven by one recipe.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # In a wheel configs/, recipes/ and data/ are llmforge/shipped/...; config/paths.py finds them there and here.
    # webui/, the board, is llmforge.webui.
    package_dir={"": "src", "llmforge.webui": "webui", **{f"llmforge.shipped.{name}": name for name in SHIPPED}},
    packages=[
        *find_packages("src"),
        "llmforge.webui",
        *(f"llmforge.webui.{name}" for name in find_packages("webui")),
        *(f"llmforge.shipped.{name}" for name in SHIPPED),
    ],
    package_data={
        "llmforge.webui": ["*.css", "*.js", "text/*.json", "text/*/*.json"],
        **{f"llmforge.shipped.{name}": patterns for name, patterns in SHIPPED.items()},
    },
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "peft>=0.18",
        "accelerate>=1.11",
        "datasets>=4.0",
        "omegaconf>=2.3",
        "tokenizers>=0.22",
        "safetensors>=0.6",
        "huggingface_hub>=1.0",
        "jinja2>=3.1",
        "pyyaml>=6.0",
        "numpy>=1.26",
        "filelock>=3.13",
        "matplotlib>=3.8",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["forge-cli = llmforge.cli:main"]},
)
