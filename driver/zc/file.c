// SPDX-License-Identifier: GPL-2.0-only
/*
 * Members on files and block devices: READ, WRITE, FSYNC.
 *
 * First without sleeping, in the server's task, so that I/O which need not wait is on its way
 * when the submitting system call returns. What must wait is done again by the device's own
 * workers: io_uring's would take the command away from us while they wait.
 */
#include <linux/blkdev.h>
#include <linux/cred.h>
#include <linux/sched/mm.h>
#include "../driver.h"

/* Neither the device itself nor a file that lives on it: they would wait for themselves. */
static bool is_own(const struct file *file, const struct ublk_device *ub)
{
	const struct inode *inode = file->f_mapping->host;
	const struct block_device *bdev;

	bdev = S_ISBLK(inode->i_mode) ? I_BDEV((struct inode *)inode) : inode->i_sb->s_bdev;
	return bdev && bdev->bd_disk->private_data == ub;
}

/**
 * ublk_file_check() - can this member be done with its file?
 * @m: the member, its file set
 * @ub: the device
 *
 * Return: 0 or -errno.
 */
int ublk_file_check(const struct ublk_member *m, const struct ublk_device *ub)
{
	const struct file *file = m->file;
	umode_t mode = file->f_mapping->host->i_mode;
	loff_t pos = m->pos;

	if ((!S_ISREG(mode) && !S_ISBLK(mode)) || is_own(file, ub))
		return -EINVAL;
	if (m->op == UBD_MEMBER_FSYNC)
		return file->f_op->fsync ? 0 : -EINVAL;
	if (m->op == UBD_MEMBER_READ) {
		if (!(file->f_mode & FMODE_READ))
			return -EBADF;
		return file->f_op->read_iter ? rw_verify_area(READ, m->file, &pos, m->len) : -EINVAL;
	}
	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	/* An appended byte goes elsewhere than where it was meant to. */
	if (!file->f_op->write_iter || (file->f_flags & O_APPEND))
		return -EINVAL;
	return rw_verify_area(WRITE, m->file, &pos, m->len);
}

/* ---- freezing ---------------------------------------------------------------------------- */

static bool write_begin(struct kiocb *iocb)
{
	struct inode *inode = file_inode(iocb->ki_filp);

	if (!S_ISREG(inode->i_mode))
		return true;
	if (!(iocb->ki_flags & IOCB_NOWAIT)) {
		kiocb_start_write(iocb);
		return true;
	}
	if (!sb_start_write_trylock(inode->i_sb))
		return false;
	/* It may end in another task. */
	__sb_writers_release(inode->i_sb, SB_FREEZE_WRITE);
	return true;
}

static void write_end(struct kiocb *iocb)
{
	if (S_ISREG(file_inode(iocb->ki_filp)->i_mode))
		kiocb_end_write(iocb);
}

/* ---- one go ------------------------------------------------------------------------------ */

static void punt(struct ublk_member *m);

static bool at_eof(const struct ublk_member *m)
{
	return m->pos + m->done >= i_size_read(m->file->f_mapping->host);
}

/* The result of one go of a READ or WRITE; its rest takes another one, which may sleep. */
static void gone(struct ublk_member *m, ssize_t ret)
{
	bool read = m->op == UBD_MEMBER_READ;

	/* Some file systems do not know what they are asked, and say so in this way. */
	if (m->nowait && (ret == -EAGAIN || ret == -EOPNOTSUPP)) {
		punt(m);
		return;
	}
	if (ret > 0) {
		m->done += ret;
		if (m->done < m->len && !(read && at_eof(m))) {
			punt(m);
			return;
		}
	}
	if (m->done == m->len)
		ret = 0;
	else if (ret >= 0)
		ret = read && (m->flags & UBD_MEMBER_F_ZERO_EOF) ? 0 : -EIO;
	ublk_member_end(m, ret);
}

static void rw_complete(struct kiocb *iocb, long ret)
{
	struct ublk_member *m = container_of(iocb, struct ublk_member, iocb);

	if (m->op == UBD_MEMBER_WRITE)
		write_end(iocb);
	gone(m, ret);
}

/*
 * With -EIOCBQUEUED the member may have ended already. The caller holds its group, and with that
 * the file and the kiocb, which are looked at until this returns.
 */
static ssize_t go(struct ublk_member *m, bool nowait)
{
	struct kiocb *iocb = &m->iocb;
	struct file *file = m->file;
	struct iov_iter iter;
	ssize_t ret;

	m->nowait = nowait;
	ublk_member_iter(m);
	/* The file may look at it when the member is over, or on its next go. */
	iter = m->iter;
	init_sync_kiocb(iocb, file);
	iocb->ki_pos = m->pos + m->done;
	iocb->ki_complete = rw_complete;
	iocb->ki_flags |= UBLK_IOCB_CACHE;
	if (nowait)
		iocb->ki_flags |= IOCB_NOWAIT;
	if (m->op == UBD_MEMBER_READ)
		return file->f_op->read_iter(iocb, &iter);
	iocb->ki_flags |= IOCB_WRITE;
	if (m->flags & UBD_MEMBER_F_FUA)
		iocb->ki_flags |= IOCB_DSYNC;
	if (!write_begin(iocb))
		return -EAGAIN;
	ret = file->f_op->write_iter(iocb, &iter);
	if (ret != -EIOCBQUEUED)
		write_end(iocb);
	return ret;
}

/* ---- where it may sleep ------------------------------------------------------------------ */

static void blocking_work(struct work_struct *work)
{
	struct ublk_member *m = container_of(work, struct ublk_member, work.work);
	/* Who opened the file may do this to it, whoever the worker is. */
	const struct cred *cred = get_cred(m->file->f_cred), *old;
	unsigned int flags = current->flags;
	struct ublk_group *g = m->group;
	ssize_t ret;

	atomic_inc(&g->left);
	/* Memory is freed through us: wait for no I/O of others, and let writes pass the limits. */
	current->flags |= PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE;
	old = override_creds(cred);
	if (m->op == UBD_MEMBER_FSYNC)
		ret = vfs_fsync(m->file, 1);
	else
		ret = go(m, false);
	revert_creds(old);
	put_cred(cred);
	/* It has no bytes that could be done in spite of an error. */
	if (m->op == UBD_MEMBER_FSYNC)
		ublk_member_end(m, ret);
	else if (ret != -EIOCBQUEUED)
		gone(m, ret);
	ublk_group_put(g, 0);
	current_restore_flags(flags, PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE);
}

static void punt(struct ublk_member *m)
{
	INIT_WORK(&m->work.work, blocking_work);
	queue_work(m->group->q->ub->zc_wq, &m->work.work);
}

/* Is it worth a try without sleeping? */
static bool may_be_quick(const struct ublk_member *m)
{
	if (m->op == UBD_MEMBER_FSYNC || !(m->file->f_mode & FMODE_NOWAIT))
		return false;
	/* A buffered write that is to be durable waits for the disk in any case. */
	return !(m->flags & UBD_MEMBER_F_FUA) || (m->file->f_flags & O_DIRECT);
}

/**
 * ublk_file_start() - begin a member on a file
 * @m: the member
 */
void ublk_file_start(struct ublk_member *m)
{
	unsigned int noio;
	ssize_t ret;

	if (!may_be_quick(m)) {
		punt(m);
		return;
	}
	noio = memalloc_noio_save();
	ret = go(m, true);
	memalloc_noio_restore(noio);
	if (ret != -EIOCBQUEUED)
		gone(m, ret);
}
