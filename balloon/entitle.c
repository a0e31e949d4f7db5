#include "balloon/entitle.h"

#include <math.h>

/* What a VM gets when everybody pays "price" bytes per share: pages x (f + k (1 - f)) = active + k x idle, so that up to
 * what is active it gets price x shares, and above it 1/k = 1 - tax of the rest. */
static uint64_t granted(const struct claim *c, double price, double untaxed)
{
	double worth = price * (double)c->shares, active = (double)c->active_bytes;
	double bytes = worth <= active ? worth : active + (worth - active) * untaxed;

	if (bytes <= (double)c->min_bytes)
		return c->min_bytes;
	return bytes >= (double)c->max_bytes ? c->max_bytes : (uint64_t)bytes;
}

static uint64_t grant_all(const struct claim *claims, size_t count, double price, double untaxed, uint64_t *bytes)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++) {
		uint64_t b = granted(&claims[i], price, untaxed);

		if (bytes)
			bytes[i] = b;
		sum += b;
	}
	return sum;
}

/* The price at which everybody has max_bytes. */
static double price_max(const struct claim *claims, size_t count, double untaxed)
{
	double price = 0;

	for (size_t i = 0; i < count; i++) {
		double active = (double)claims[i].active_bytes, most = (double)claims[i].max_bytes;
		double worth = most <= active ? most : active + (most - active) / untaxed;

		price = fmax(price, worth / (double)claims[i].shares);
	}
	return price * (1 + 1e-9); /* above every rounding */
}

uint64_t entitle(const struct claim *claims, size_t count, uint64_t budget_bytes, unsigned int tax_percent,
		 uint64_t *bytes)
{
	double untaxed = 1 - tax_percent / 100.0, low = 0, high = price_max(claims, count, untaxed);
	uint64_t least = grant_all(claims, count, 0, untaxed, bytes);

	if (least >= budget_bytes)
		return least - budget_bytes;
	if (grant_all(claims, count, high, untaxed, bytes) <= budget_bytes)
		return 0;
	/* What is granted grows with the price: halve until two doubles are left. The lower one stays within the budget. */
	for (;;) {
		double middle = low + (high - low) / 2;

		if (middle <= low || middle >= high)
			break;
		if (grant_all(claims, count, middle, untaxed, NULL) <= budget_bytes)
			low = middle;
		else
			high = middle;
	}
	grant_all(claims, count, low, untaxed, bytes);
	return 0;
}
