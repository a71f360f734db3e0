# syntax=docker/dockerfile:1
# One image for the worker, Flower and the command line.
#
#   docker build -t graph-migrator .
#   docker run --rm graph-migrator graph-migrator --help

ARG PYTHON=3.13.9-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/graph-migrator
WORKDIR /src
# The code comes as an installed package: no source tree, no compiler and no pip cache in the image.
COPY pyproject.toml README.md LICENSE celeryconfig.py ./
COPY graph_migrator graph_migrator
COPY core core
COPY tasks tasks
COPY console console
RUN /opt/graph-migrator/bin/pip install ".[console,flower,metrics]"

FROM python:${PYTHON}
RUN useradd --system --uid 10001 --create-home --shell /usr/sbin/nologin migrator
COPY --from=build /opt/graph-migrator /opt/graph-migrator
# The graph types that the worker serves; replace them with your own, or install them as packages.
COPY --chown=root:root examples /app/examples
WORKDIR /app
USER migrator
ENV PATH=/opt/graph-migrator/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    # `docker stop` sends SIGTERM: finish the hops that end in time, put the messages of the others back.
    REMAP_SIGTERM=SIGQUIT
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "graph_migrator", "worker", "-Q", "migrations", "-n", "worker@%h", "-l", "INFO", "-E"]
