#!/usr/bin/env bash
# Check the packages installed beside PYTHON against known vulnerabilities: audit.sh PYTHON
# pip-audit runs in its own environment, so that the audited one does not change. Exit code 0: nothing is known, or the
# audit is not possible here (no pip-audit, no access to the data), with the reason; 1: a vulnerability is known, or
# pip-audit failed.
set -euo pipefail
python=${1:?usage: audit.sh PYTHON}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

skip() { printf 'audit: skipped: %s\n' "$1"; exit 0; }
reason() { grep -v '^ *$' "$1" | tail -n 1 | cut -c 1-300; }

# Exact versions, without local suffixes (2.11.0+cpu), under which no vulnerability is filed; vaerun itself is not listed.
"$python" -m pip freeze --all --exclude-editable > "$work/all"
sed -nE 's/^([A-Za-z0-9._-]+==[^+ ]+)(\+[^ ]*)?$/\1/p' "$work/all" | grep -v '^vaerun==' > "$work/packages" || true
[ -s "$work/packages" ] || { echo "audit: $python has no packages with a version" >&2; exit 1; }

"$python" -m venv "$work/tool"
"$work/tool/bin/pip" install -q --disable-pip-version-check pip-audit > "$work/log" 2>&1 ||
    skip "pip-audit cannot be installed: $(reason "$work/log")"

for service in pypi osv; do
    status=0
    rm -f "$work/found.json"
    "$work/tool/bin/pip-audit" --progress-spinner off --timeout 20 --vulnerability-service "$service" --disable-pip --no-deps \
        --format json --output "$work/found.json" -r "$work/packages" > "$work/log" 2>&1 || status=$?
    [ -s "$work/found.json" ] || continue # no answer
    # Exit code 3: the service knows no package at all, as a package mirror without vulnerability data does.
    told=0
    "$python" - "$work/found.json" "$service" 2>> "$work/why" << 'END' || told=$?
import json, sys

packages = json.load(open(sys.argv[1]))["dependencies"]
known = [(p["name"], p["version"], v) for p in packages for v in p.get("vulns", ())]
unknown = [p for p in packages if "skip_reason" in p]
if len(unknown) == len(packages):
    print(f"{sys.argv[2]} knows none of {len(packages)} packages ({unknown[0]['skip_reason']})", file=sys.stderr)
    sys.exit(3)
for name, version, v in known:
    print(f"audit: {name} {version}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version yet'}")
more = f"; not found there: {', '.join(p['name'] for p in unknown)}" if unknown else ""
print(f"audit: {len(packages) - len(unknown)} packages looked up ({sys.argv[2]}), {len(known)} known vulnerabilities{more}")
END
    [ "$told" -eq 3 ] || exit "$status"
done
[ ! -s "$work/why" ] || skip "no data: $(reason "$work/why")"
grep -qiE 'connect|resolve|timed? ?out|network|proxy|ssl|HTTP|host|refused|unreachable' "$work/log" ||
    { cat "$work/log" >&2; exit 1; }
skip "no answer from either service: $(reason "$work/log")"
