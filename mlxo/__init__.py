"""mlxo: Ollama for MLX."""

__version__ = "0.1.0"

# The Ollama release whose HTTP API is spoken; clients gate features by what /api/version answers.
OLLAMA_API_VERSION = "0.32.15"
