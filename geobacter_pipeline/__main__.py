"""`python -m geobacter_pipeline`: the launcher, with a regions file that cannot be read told in a sentence.

Being called `__main__` has another use: processes that render tiles do not import such a module again, Dagster and all.
"""

import sys

from geobacter_core.errors import GeobacterError

if __name__ == "__main__":
    try:
        from geobacter_pipeline.launch import main
    except GeobacterError as problem:
        sys.exit(str(problem))
    sys.exit(main())
