"""The stages: each loads its parents, calls one room, saves what came out. The rooms know nothing of artifacts."""
