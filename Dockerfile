# The job image: Debian's Python, the libraries of the `jobs` extra, our packages, all byte-compiled.
FROM debian:trixie-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip
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
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /app/dispatcher /app/jobs /app/cronjobs

FROM debian:trixie-slim
RUN apt-get update && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /app /app
WORKDIR /app
ENV PYTHONPATH=/app/lib PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["python3", "-m", "jobs"]
