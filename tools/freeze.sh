# Write constraints.txt: the versions that the tests passed with. Run after the tests, in the environment they ran in.
set -euo pipefail
{
    echo "# Versions that the tests passed with on Python 3.11; made by tools/freeze.sh, used by make."
    .venv/bin/pip freeze --exclude-editable --exclude setuptools | grep -v '^imgclf' | sed 's/+cpu//; s/$/ ; python_version >= "3.11"/' |
        sed '/^soupsieve==4/s/python_version >= "3.11"/python_full_version >= "3.11.5"/'   # Debian 12 has 3.11.2
} > constraints.txt
