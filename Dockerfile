# adaptertool with pages and JUnit, without torch:    docker build -t adaptertool .
#     docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" adaptertool merge base lora -o merged
FROM python:3.12-slim AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY adaptertool adaptertool
RUN python -m venv /opt/adaptertool \
 && /opt/adaptertool/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[report]'

FROM python:3.12-slim
COPY --from=build /opt/adaptertool /opt/adaptertool
RUN useradd --uid 1000 --create-home adaptertool
# What pages are drawn with keeps a cache, for users without a home too
ENV PATH=/opt/adaptertool/bin:$PATH \
    MPLCONFIGDIR=/tmp/matplotlib
USER 1000
WORKDIR /data
ENTRYPOINT ["adaptertool"]
CMD ["--help"]
