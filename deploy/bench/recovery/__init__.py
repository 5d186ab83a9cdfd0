"""Recovery: how fast what is in doubt is resolved, against XA COMMIT by hand (docs/decisions/0013)."""
