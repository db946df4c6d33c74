# Two images: `job`, which is built without a target too, runs one task; `console` is what operators run by hand.
FROM debian:trixie-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 python3-pip
WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
# The libraries alone, from the metadata: this layer is kept until they change.
RUN mkdir dispatcher && touch dispatcher/__init__.py \
    && python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
o = p['optional-dependencies']; \
print('\n'.join(r for r in p['dependencies'] + o['db'] + o['results'] + o['jobs'] if not r.startswith(p['name'])))" > requirements.txt \
    && python3 -m pip install --no-cache-dir --target /app/lib -c constraints.txt -r requirements.txt
# A read-only container cannot store byte code later: without this each start takes three times as long.
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /app/lib
COPY dispatcher /app/dispatcher
COPY jobs /app/jobs
COPY cronjobs /app/cronjobs
COPY keda /app/keda
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /app/dispatcher /app/jobs /app/cronjobs /app/keda

FROM debian:trixie-slim AS job
# A slim base has no authorities: without them no certificate of a server is trusted.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /app /app
WORKDIR /app
ENV PYTHONPATH=/app/lib PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["python3", "-m", "jobs"]

FROM build AS build-console
COPY console /console/console
# As pip would leave it of console/pyproject.toml: by the entry point `python3 -m dispatcher` has these commands too.
RUN mv /console/console/src/autolabs_console /console/ && rmdir /console/console/src \
    && python3 -c "import pathlib, tomllib; p = tomllib.load(open('/console/console/pyproject.toml', 'rb'))['project']; \
d = pathlib.Path('/console', p['name'].replace('-', '_') + '-' + p['version'] + '.dist-info'); d.mkdir(); \
(d / 'METADATA').write_text('Metadata-Version: 2.1\nName: ' + p['name'] + '\nVersion: ' + p['version'] + '\n'); \
(d / 'entry_points.txt').write_text(''.join('[' + g + ']\n' + ''.join(n + ' = ' + v + '\n' for n, v in e.items()) \
for g, e in p['entry-points'].items()))" \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /console

FROM job AS console
COPY --from=build-console /console /app
ENTRYPOINT ["python3", "-m", "console"]

FROM job
