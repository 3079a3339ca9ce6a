# The project with its weights, in a container:
#   docker build -t tsan .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -v "$PWD:/data" tsan \
#     bash_predict.sh /data/scan.nii.gz --output_dir /data/predictions
# Without a GPU, leave out --gpus. Any bash script of the project runs this way.
FROM python:3.12-slim-bookworm

WORKDIR /opt/tsan
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
# HOME, because a user that the container does not know has none.
ENV PYTHON=/usr/local/bin/python PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
ENTRYPOINT ["bash"]
CMD ["bash_predict.sh", "--help"]
