def names_by_structure(model): raise NotImplementedError
