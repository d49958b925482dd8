-- An object keeps its content coding, and each bucket has functions of another shape (decision 0010).
LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE;
ALTER TABLE poky._object ADD COLUMN content_encoding text COLLATE "C";
-- Without a comment: LIKE would give it to new partitions, and the present ones have none.
ALTER TYPE poky.object ADD ATTRIBUTE content_encoding text;
ALTER TYPE poky.listed ADD ATTRIBUTE content_encoding text;
-- Without it poky.reader and poky.writer of 0.1.0 fail, and that release does without them.
DROP FUNCTION poky._own (poky.bucket, text, text, text);
