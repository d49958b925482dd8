-- From flat to partitioned, given up: the flat table never stopped being the truth. The partitions
-- are of no use any more, since changes pass them by; they are dropped one by one after this.

DROP TRIGGER follow_bucket ON poky.bucket;
DROP FUNCTION poky._follow_bucket;
DROP TRIGGER IF EXISTS mirror_object ON poky._object;
DROP FUNCTION IF EXISTS poky._mirror_object;
UPDATE poky._conversion SET given_up = true;
