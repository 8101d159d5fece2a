from django.db import migrations

# Two lists of a hundred thousand are compared by hashing or sorting; PostgreSQL's own && and any() compare each with
# each, which takes minutes. Short ones are compared so, as that is several times faster. No item is in a list twice.
ITEMS_MEET = """
create function removal_items_meet(held text[], wanted text[]) returns boolean
language plpgsql immutable strict parallel safe as $$
begin
    if cardinality(held)::bigint * cardinality(wanted) <= 10000 or cardinality(wanted) <= 8 then
        return held && wanted;
    end if;
    return exists (select unnest(held) intersect select unnest(wanted));
end $$;
"""

# In the order of the first.
ITEMS_IN_BOTH = """
create function removal_items_in_both(held text[], wanted text[]) returns text[]
language plpgsql immutable strict parallel safe as $$
begin
    if cardinality(held)::bigint * cardinality(wanted) <= 10000 or cardinality(wanted) <= 8 then
        return array(select i.item from unnest(held) with ordinality i(item, place)
                      where i.item = any(wanted) order by i.place);
    end if;
    return array(
        select x.item
          from (select item, place from unnest(held) with ordinality i(item, place)
                 union all select item, null from unnest(wanted) w(item)) x
         group by x.item
        having count(x.place) > 0 and count(*) > count(x.place)
         order by min(x.place));
end $$;
"""


class Migration(migrations.Migration):
    dependencies = [("removal", "0015_labels")]

    operations = [
        migrations.RunSQL(ITEMS_MEET, "drop function removal_items_meet(text[], text[])"),
        migrations.RunSQL(ITEMS_IN_BOTH, "drop function removal_items_in_both(text[], text[])"),
    ]
