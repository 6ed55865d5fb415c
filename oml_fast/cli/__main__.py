"""`python -m oml_fast.cli` is `oml-fast`."""

import sys

from . import main

sys.exit(main())
