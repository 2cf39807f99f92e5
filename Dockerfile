# The programs on a CPU, see docs/containers.md: docker build --tag condconv .
FROM python:3.7.17-slim-bookworm

WORKDIR /opt/condconv
COPY setup.sh requirements*.txt requirements*.lock ./
RUN bash setup.sh
COPY . .

RUN useradd --create-home --uid 1000 runner
USER 1000
ENTRYPOINT ["/opt/condconv/.venv/bin/python"]
CMD ["main.py", "--help"]
