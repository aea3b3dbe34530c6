"""The packed file: one model in one file that is mapped and used as it lies. `format` draws it."""
