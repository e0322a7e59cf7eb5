"""Files and artifacts: paths of any store, manifests, errors."""
