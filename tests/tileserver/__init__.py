"""The OSM tile server under test: Debian's packages, a throw-away stack of them, and tests against it."""
