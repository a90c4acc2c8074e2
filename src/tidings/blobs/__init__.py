"""Files that entries link to: kept as local files or on S3, readable to who may read the room."""
