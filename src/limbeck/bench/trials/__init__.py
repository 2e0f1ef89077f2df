"""The trials: `ROOM/KEY.py` holds what a method's paper claims, made runnable."""
