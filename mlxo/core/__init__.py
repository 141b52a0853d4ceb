"""The nouns every other package speaks: types, names, errors, settings, paths, logs, wire, process."""
