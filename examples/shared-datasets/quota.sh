#!/bin/sh
# Space for the changes of each user, with a limit. Runs as root.
#
#   quota.sh start          once, when the platform starts; prints the kind of limit
#   quota.sh add USER       makes (or finds again) the folder $PLATFORM/volumes/USER
#   quota.sh release USER   after the user's session; the changes stay
#   quota.sh stop           when the platform stops
#
# PLATFORM is the platform's folder, QUOTA_MIB the limit of each user. USER is a number: the user's uid, and the number of
# the project. Where the kernel has project quotas of XFS, all users share a volume, and the limit belongs to a project. Else
# each user has a volume of that size.
set -eu
PATH=$PATH:/usr/sbin:/sbin
volumes=$PLATFORM/volumes
shared=$PLATFORM/volumes.xfs

case $1 in
start)
    # Users reach the changes through their view only.
    mkdir -p -m 700 "$volumes"
    if [ ! -e "$shared" ]; then
        truncate -s "${SHARED_SIZE:-8G}" "$shared"
        mkfs.xfs -q "$shared" 2>/dev/null || rm "$shared"
    fi
    if [ -e "$shared" ] && command -v xfs_quota >/dev/null && mount -o loop,prjquota "$shared" "$volumes" 2>/dev/null; then
        chmod 700 "$volumes"
        echo "limit by project id: $QUOTA_MIB MiB for each user"
    else
        rm -f "$shared"
        echo "limit by size: a volume of $QUOTA_MIB MiB for each user"
    fi
    ;;
add)
    folder=$volumes/$2
    mkdir -p "$folder"
    if [ -e "$shared" ]; then
        # New files below the folder inherit the project.
        xfs_quota -x -D /dev/null -P /dev/null -c "project -s -p $folder $2" "$volumes" >/dev/null
        xfs_quota -x -D /dev/null -P /dev/null -c "limit -p bhard=${QUOTA_MIB}m $2" "$volumes"
    else
        if [ ! -e "$folder.ext4" ]; then
            truncate -s "${QUOTA_MIB}M" "$folder.ext4"
            # No blocks are kept for root: kitfs mounts as root, and would give them to the user.
            mkfs.ext4 -q -m 0 -E lazy_journal_init=1 "$folder.ext4"
        fi
        mountpoint -q "$folder" || mount -o loop "$folder.ext4" "$folder"
    fi
    ;;
release) [ -e "$shared" ] || umount "$volumes/$2" ;;
stop) [ ! -e "$shared" ] || umount "$volumes" ;;
esac
