# docker build -t polypseg:local .
# It computes on the CPU, by OpenVINO, and has no PyTorch. For an NVIDIA GPU: --build-arg EXTRAS=serve,dicom,torch
FROM python:3.12-slim

ARG EXTRAS=serve,dicom
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY src src
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[$EXTRAS]" \
 && useradd --uid 10001 --no-create-home polypseg \
 && install -d -o 10001 -m 700 /state

WORKDIR /state
USER 10001
ENV MPLCONFIGDIR=/tmp
VOLUME /state
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
# Others reach it here, so it asks for POLYPSEG_TOKEN.
ENTRYPOINT ["polypseg", "serve", "--host", "0.0.0.0", "--state", "/state"]
