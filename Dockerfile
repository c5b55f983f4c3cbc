# The training image: what pyproject.toml asks for, in the versions of constraints.txt (docs/docker.md).
# No CUDA base image: torch's own wheels bring CUDA's libraries, the driver comes from the host.
FROM python:3.11-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# The user who trains. Give your own number (id -u), so that what is written into a mounted project is yours.
ARG USER_ID=1000
RUN useradd --no-log-init --create-home --uid "$USER_ID" --shell /bin/bash goldfold \
    && install --directory --owner=goldfold /work /home/goldfold/.cache

WORKDIR /work

# Dependencies first: a change of the source or of a configuration installs nothing again.
COPY pyproject.toml constraints.txt ./
ARG EXTRAS="wandb plot"
RUN python -c "import os, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [project['optional-dependencies'][name] for name in os.environ['EXTRAS'].split()]; \
print(*project['dependencies'], *sum(extras, []), sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt \
    && rm requirements.txt

# Editable: a project that is mounted at /work runs its own source.
COPY README.md LICENSE* ./
COPY configs configs
COPY src src
RUN pip install --no-deps --editable .

USER ${USER_ID}
ENTRYPOINT ["goldfold"]
CMD ["--help"]
